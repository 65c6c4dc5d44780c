"""The command line in this process: for calls that run no trial, at a tenth of a process' cost."""

import contextlib
import io
import os
import sys
import types
from unittest import mock

from optikit import cli


def called(*arguments, cwd, check=0):
    """What `optikit ARGUMENTS` answers in a folder: returncode, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["optikit", *map(str, arguments)]),
        mock.patch.object(sys, "path", [str(cwd), *sys.path]),
        mock.patch.dict(os.environ, {"COLUMNS": "140"}),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
    done = types.SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
    assert "Traceback" not in done.stderr
    assert done.returncode == check, done.stdout + done.stderr
    return done
