"""Tokens become a checkpoint.

`train` is the loop. It calls `step` for an optimizer step, `validation` for the loss on the validation split, `state`
to save and restore, `figures` to log. `progress` is what has been counted so far.

A training can be killed at any instant. The same command continues it from the newest state that verifies. On a CPU
with as many threads it ends with the same bytes, because the order of the data (`batches`), the learning rate (`optim`)
and the dropout masks follow from the seed and the step. SIGINT and SIGTERM (`interrupt`) have their effect before the
next backward pass, after the state is saved.

`plan` says what a training will do before it starts. With `schedule: wsd`, `trunk` keeps the state at which the decay
begins, and a longer training goes on from it (`start`): the steps before the decay are the same for every length.

With `devices: N`, `launch` starts N processes by torchrun's agent, and `group` says who is who. They share each batch
(DistributedDataParallel), and the loss curve is that of one process within rounding. `torchrun -m textgen train …`
works too.

A step whose loss or gradient is not finite moves nothing. `max_bad_steps` of them in a row end the training.

`meters` and `energy` measure speed, memory and joules; `out_of_memory` says which settings to lower; `warm_start`
starts from another model (`init_from`); `handover` copies the states to a remote root, so that another machine can
continue; `environment` records the commit and the packages; `estimate` says what a training will need. `folder` has the
names in a training folder, and what it is known by; `checkpoint` is the manifest of a finished training.
"""
