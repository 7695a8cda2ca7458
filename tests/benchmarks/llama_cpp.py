"""llama.cpp on our own GGUF: the likeliest token each time, for the speed of generation.

It takes llama.cpp's shared libraries as a folder, with the kernels of many processors. The npm registry has them:
`npm pack @node-llama-cpp/linux-x64`, unpacked, in `package/bins/linux-x64`.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch

Q8_0 = 7  # llama.h: LLAMA_FTYPE_MOSTLY_Q8_0
# llama.h passes and returns its parameters by value. Each is larger than this leaves room for in no version; the
# callee reads and writes its own size.
ROOM = 1024


class Parameters(ctypes.Structure):
    """A struct of llama.h whose fields keep their defaults, but for a second int."""

    _fields_ = (("first", ctypes.c_int32), ("second", ctypes.c_int32), ("rest", ctypes.c_byte * ROOM))


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silence(*_: object) -> None:
    """Take a line of llama.cpp's log."""


@cache
def load_library(libraries: Path) -> ctypes.CDLL:
    """Return llama.cpp with the kernels for this processor."""
    library = ctypes.CDLL(str(next(libraries.glob("libllama.*so"))))
    ctypes.CDLL(str(next(libraries.glob("libggml.*so")))).ggml_backend_load_all_from_path(str(libraries).encode())
    library.llama_log_set(silence, None)
    for name in ("model", "context", "model_quantize"):
        getattr(library, f"llama_{name}_default_params").restype = Parameters
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory"):
        getattr(library, name).restype = ctypes.c_void_p
    library.llama_batch_get_one.restype = Parameters
    library.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    return library


def quantize(libraries: Path, gguf: Path, quantized: Path) -> None:
    """Write a model's matrices as Q8_0."""
    library = load_library(libraries)
    parameters = library.llama_model_quantize_default_params()
    parameters.second = Q8_0
    if library.llama_model_quantize(str(gguf).encode(), str(quantized).encode(), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp cannot quantize {gguf}")


class LlamaCpp:
    """A model in llama.cpp, with its default context of 512 tokens and as many threads as torch has."""

    def __init__(self, libraries: Path, gguf: Path, vocab_size: int) -> None:
        self.library, self.vocab_size = load_library(libraries), vocab_size
        parameters = self.library.llama_model_default_params()
        model = ctypes.c_void_p(self.library.llama_model_load_from_file(str(gguf).encode(), parameters))
        assert model, f"llama.cpp cannot load {gguf}"
        parameters = self.library.llama_context_default_params()
        self.context = ctypes.c_void_p(self.library.llama_init_from_model(model, parameters))
        threads = torch.get_num_threads()
        self.library.llama_set_n_threads(self.context, threads, threads)
        # ggml sets up the processor's tiles once in a thread, and torch's products in bf16 release them.
        self.thread = ThreadPoolExecutor(1)

    def write(self, prompt: list[int], tokens: int) -> list[int]:
        """Return the likeliest tokens after the prompt, one by one."""
        return self.thread.submit(self._write, prompt, tokens).result()

    def _write(self, prompt: list[int], tokens: int) -> list[int]:
        self.library.llama_memory_clear(ctypes.c_void_p(self.library.llama_get_memory(self.context)), True)
        written, ids = [], prompt
        for _ in range(tokens):
            array = (ctypes.c_int32 * len(ids))(*ids)
            assert self.library.llama_decode(self.context, self.library.llama_batch_get_one(array, len(ids))) == 0
            logits = np.ctypeslib.as_array(self.library.llama_get_logits_ith(self.context, -1), (self.vocab_size,))
            ids = [int(logits.argmax())]
            written += ids
        return written
