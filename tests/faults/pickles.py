"""Malicious pickles: reading one runs no code, writes no file and gives a one-line error."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dskd.data.restricted_pickle import read_pickle
from dskd.errors import InputError
from dskd.storage.weights import read_weights

FAMILY = "malicious pickles"
FILES = ("data", "zip", "legacy")
"""Sources of a pickle: a file of CIFAR, and both formats of ``torch.save``."""

_MARK, _VICTIM = "mark", "victim"  # files in the folder where the pickle is read
_CODE = f"open({_MARK!r}, 'w').close()"

CALLS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("os system", (f"touch {_MARK}",)),
    ("posix system", (f"touch {_MARK}",)),
    ("os popen", (f"touch {_MARK}",)),
    ("os execlp", ("touch", "touch", _MARK)),
    ("os mkdir", (_MARK,)),
    ("os symlink", (_VICTIM, _MARK)),
    ("os remove", (_VICTIM,)),
    ("os rename", (_VICTIM, _MARK)),
    ("os kill", (0, 9)),
    ("os _exit", (0,)),
    ("subprocess Popen", (["touch", _MARK],)),
    ("subprocess run", (["touch", _MARK],)),
    ("subprocess getoutput", (f"touch {_MARK}",)),
    ("pty spawn", (["touch", _MARK],)),
    ("builtins eval", (_CODE,)),
    ("builtins exec", (_CODE,)),
    ("__builtin__ execfile", (_MARK,)),
    ("builtins open", (_MARK, "w")),
    ("builtins compile", (_CODE, "x", "exec")),
    ("builtins __import__", ("antigravity",)),
    ("builtins getattr", (0, "real")),
    ("builtins breakpoint", ()),
    ("importlib import_module", ("antigravity",)),
    ("runpy run_path", (_VICTIM,)),
    ("code InteractiveInterpreter", ()),
    ("timeit timeit", (_CODE,)),
    ("cProfile run", (_CODE,)),
    ("operator methodcaller", ("touch",)),
    ("functools partial", (print,)),
    ("pickle loads", (b"cos\nsystem\n.",)),
    ("marshal loads", (b"N",)),
    ("ctypes CDLL", ("libc.so.6",)),
    ("shutil rmtree", (_VICTIM,)),
    ("shutil copy", (_VICTIM, _MARK)),
    ("pathlib Path.touch", (_MARK,)),
    ("tempfile NamedTemporaryFile", ()),
    ("logging FileHandler", (_MARK,)),
    ("zipfile ZipFile", (_MARK, "w")),
    ("sqlite3 connect", (_MARK,)),
    ("shelve open", (_MARK,)),
    ("socket create_connection", (("127.0.0.1", 9),)),
    ("urllib.request urlopen", ("http://127.0.0.1:9/",)),
    ("webbrowser open", ("http://127.0.0.1:9/",)),
    ("sys exit", (0,)),
    ("time sleep", (3600,)),
    ("numpy load", (_VICTIM,)),
    ("numpy memmap", (_MARK, "u1", "w+", 0, 1)),
    ("numpy fromfile", (_VICTIM,)),
    ("numpy savetxt", (_MARK, [1])),
    ("numpy.core.multiarray fromfile", (_VICTIM,)),
    ("numpy.f2py compile", ("",)),
    ("torch load", (_VICTIM,)),
    ("torch save", (1, _MARK)),
    ("torch.hub load", (_VICTIM, "x")),
    ("torch.storage _load_from_bytes", (b"cos\nsystem\n.",)),
    ("torch.jit load", (_VICTIM,)),
    ("torch.utils.cpp_extension load", ("x", [])),
    ("dskd.models.factory load_model", ("os:system",)),
)
"""Functions that a file tries to call, and their arguments."""

_SYSTEM = b"cos\nsystem\n"
_ORDER = b"(K\x03U\x01|NNNtb"
FORGED: dict[str, bytes] = {
    "INST": b"(S'touch mark'\nios\nsystem\n.",
    "OBJ": b"(" + _SYSTEM + b"S'touch mark'\no.",
    "NEWOBJ": _SYSTEM + b"U\x0atouch mark\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04" + _SYSTEM + b"U\x0atouch mark\x85}\x92.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch mark\x85R.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "an extension code": b"\x82\x01.",
    "a large extension code": b"\x84\x01\x00\x00\x01.",
    "a persistent id": b"Pmark\n.",
    "a binary persistent id": b"U\x04markQ.",
    "a buffer": b"\x80\x05\x97.",
    "a read-only buffer": b"\x80\x05U\x01a\x98.",
    "state for a class": b"cnumpy\nndarray\n}S'numbers'\nK\x01sb.",
    "a class's own setstate": b"cnumpy\nndarray\n(N}S'__setstate__'\nNstb.",
    "state for a function": b"c_codecs\nencode\n(N}S'_call'\nNstb.",
    "state for a tuple": b"K\x01\x85Nb.",
    "an unknown encoding": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00base64tR.",
    "an array of objects": b"cnumpy\ndtype\n(S'O'\nK\x00K\x01tR.",
    "an array of objects, old name": b"cnumpy\ndtype\n(S'O8'\nK\x00K\x01tR.",
    "an array of objects by state": b"cnumpy\ndtype\n(S'u1'\ntR(K\x03S'O,'\nNNNtb.",
    "an array of records": b"cnumpy\ndtype\n(S'u1'\ntR(K\x03S'|'\nN(S'a'\nt}tb.",
    "an array without numbers": b"cnumpy\nndarray\n)\x81.",
    "too few numbers": b"cnumpy.core.multiarray\nscalar\n(S'u1'\nS'a'\ntR.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__base__\x93.",
    "a function of a nested module": b"cnumpy.os\nsystem\n(S'touch mark'\ntR.",
    "a name with an escape": b"c\x1b]0;x\x07\nx\n.",
    "a call of a built object": b"]K\x01\x85R.",
    "a call without arguments": b"c_codecs\nencode\nNR.",
    "an empty stack": b"R.",
    "no mark on the stack": b"t.",
    "an empty pickle": b"",
    "no end": b"K\x01",
    "a number alone": b"K\x01.",
    "unterminated text": b"S'a\n.",
}
"""Pickles that misuse allowed functions, or use instructions that data files do not need."""


def _number(code: bytes, number: int) -> bytes:
    return code + number.to_bytes(4, "little")


_DEEP = b"K\x01" + b"\x85" * 200_000
_DOUBLED = b"K\x01" + b"2\x86" * 60
_LONG_TEXT = b"c_codecs\nencode\nq\x00" + _number(b"X", 2**20) + b"a" * 2**20 + b"q\x01"
BOMBS: dict[str, bytes] = {
    "a deep key": b"}" + _DEEP + b"K\x01s.",
    "a deep key in a set": b"\x80\x04\x8f(" + _DEEP + b"\x90.",
    "a deep key in a frozen set": b"\x80\x04(" + _DEEP + b"\x91.",
    "a key that doubles": b"}" + _DOUBLED + b"K\x01s.",
    "a key that doubles, by memo": b"}K\x01" + b"q\x00h\x00h\x00\x86" * 60 + b"K\x01s.",
    "keys that double and are compared": b"(" + (_DOUBLED + b"K\x01") * 2 + b"d.",
    "a deep list": b"]" * 200_000 + b"a" * 199_999 + b".",
    "16 million lists": b"]" * 2**24 + b".",
    "a large memo number": b"(lr\xff\xff\xff\x7f.",
    "a huge memo number": b"(lp999999999999\n.",
    "a negative memo number": b"(lp-1\n.",
    "a length beyond the file": _number(b"B", 2**31) + b"a.",
    "a frame beyond the file": b"\x80\x04\x95" + b"\xff" * 7 + b"\x00K\x01.",
    "a number of many digits": b"L" + b"9" * 100_000 + b"L\n.",
    "text that is encoded 50,000 times": b"(" + _LONG_TEXT + b"h\x00h\x01U\x06latin1\x86R" * 50_000
    + b"l.",
    "a shape of huge numbers": b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01("
    + _number(b"\x8b", 2**17) + b"\x7f" * 2**17 + b"q\x00" + b"h\x00" * 10_000
    + b"tcnumpy\ndtype\n(U\x02u1tR" + _ORDER + b"I00\nU\x00tb.",
    "a shape larger than its numbers": b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01("
    + b"J\xff\xff\xff\x7f" * 4 + b"tcnumpy\ndtype\n(U\x02u1tR" + _ORDER + b"I00\nU\x00tb.",
}  # fmt: skip
"""Pickles that run no code, but fill the memory, never end or crash the process."""


def cases(whole: bool = True) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """Every pickle with its source. Without ``whole``, those that are read quickly."""
    for name, arguments in CALLS:
        for protocol in (0, 2, 4):
            call = _called(name, arguments, protocol)
            yield f"{name}, protocol {protocol}", ("data", _entry(call, protocol))
        for file in ("zip", "legacy"):
            yield f"{name}, {file}", (file, _entry(_called(name, arguments, 2), 2))
    for name, data in FORGED.items():
        for file in FILES:
            yield f"{name}, {file}", (file, data)
    for name, data in BOMBS.items():
        if whole or len(data) < 2**23:
            yield name, ("data", data)


def check(case: tuple[str, bytes], folder: Path) -> str:
    """Reads a pickle and checks that the only effect is a one-line error."""
    file, data = case
    (folder / _VICTIM).write_text("here\n")
    path = folder / "weights.pth"
    path.write_bytes(_torch_file(data) if file == "zip" else data)
    before, start = sorted(folder.iterdir()), Path.cwd()
    os.chdir(folder)
    try:
        with pytest.raises(InputError) as refused:
            read_pickle(data, "train") if file == "data" else read_weights(path)
    finally:
        os.chdir(start)
    assert str(refused.value).isprintable(), "the message must be one line"
    assert len(str(refused.value)) < 500, "the message must be short"
    assert sorted(folder.iterdir()) == before, "a file was written"
    assert (folder / _VICTIM).read_text() == "here\n", "a file was changed"
    return "refused"


def _called(name: str, arguments: tuple[Any, ...], protocol: int) -> bytes:
    """The instructions that call a function, without header and end."""
    module, function = name.split(" ")
    given = pickle.dumps(arguments, protocol)
    body = given[2:-1] if protocol >= 2 else given[:-1]
    body = body[9:] if protocol == 4 and body[:1] == b"\x95" else body  # drop the frame
    if protocol < 4:
        return f"c{module}\n{function}\n".encode() + body + b"R"
    named = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, function))
    return named + b"\x93" + body + b"R"


def _entry(call: bytes, protocol: int) -> bytes:
    """A pickle with the call as a value of a dict, as in a file of CIFAR."""
    header = b"\x80" + bytes([protocol]) if protocol >= 2 else b""
    return header + b"(dS'data'\n" + call + b"s."


def _torch_file(data: bytes) -> bytes:
    """A file as ``torch.save`` writes it, with the given pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()
