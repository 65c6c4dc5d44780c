"""Data sets: files of every format, downloads from a local server, checksums, the offline switch."""

import bz2
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import struct
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from optikit.problems import fetch, load, readers
from optikit.problems.data import DATA

X = np.array([[1.0, 0.0, 2.5], [0.0, -3.0, 0.0], [4.0, 0.5, 0.0], [1.5, 0.0, 7.0]])
Y = np.array([1, -1, 1, -1])
LIBSVM = b"1 1:1 3:2.5\n-1 2:-3 # one\n1 1:4 2:0.5\n-1 1:1.5 3:7\n"
CSV = b"a,b,c,class\n1,0,2.5,yes\n0,-3,0,no\n4,0.5,0,yes\n1.5,0,7,no\n"
HEADLESS = b"1,0,2.5,1\n0,-3,0,-1\n4,0.5,0,1\n1.5,0,7,-1\n"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A data folder, a cache and a working directory of the test's own."""
    for name in ("data", "cache", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("OPTIKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OPTIKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPTIKIT_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def server(places):
    """The folder `served` on a local port; .requests lists what was asked for."""
    root = places / "served"
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/short":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"only this")
            elif self.path == "/busy":
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    asked = []
    handler = functools.partial(Handler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        running.root, running.requests = root, asked
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.shutdown()
        thread.join()


def npz(**arrays):
    held = io.BytesIO()
    np.savez(held, **arrays)
    return held.getvalue()


def parquet():
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    held = io.BytesIO()
    columns = {"class": ["yes" if y > 0 else "no" for y in Y], **dict(zip("abc", X.T, strict=True))}
    pq.write_table(pa.table(columns), held)
    return held.getvalue()


def idx(array, code):
    head = struct.pack(f">BBBB{array.ndim}i", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


FORMATS = {
    "rows.svm": (lambda: LIBSVM, ""),
    "rows.svm.gz": (lambda: gzip.compress(LIBSVM), ""),
    "rows.bz2": (lambda: bz2.compress(LIBSVM), ""),
    "rows.csv": (lambda: CSV, ""),
    "rows.txt": (lambda: CSV.replace(b",", b";"), "#target=class"),
    "bare.csv": (lambda: HEADLESS, ""),
    "rows.parquet": (parquet, "#target=class"),
    "rows.npz": (lambda: npz(X=X, y=Y), ""),
    "images.npz": (lambda: npz(images=X.reshape(4, 3, 1), labels=Y), ""),
}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_gives_the_same_rows(name, places):
    content, options = FORMATS[name]
    (places / "data" / name).write_bytes(content())
    found = load(f"file:{name}{options}")
    np.testing.assert_array_equal(found.inputs, X)
    np.testing.assert_array_equal(found.targets, (Y > 0).astype(int))
    assert found.classes == 2
    assert found.inputs.dtype == np.float64


def test_idx_files_of_every_type_and_their_labels(places):
    images = (np.arange(4 * 3 * 2) % 7).reshape(4, 3, 2)
    labels = np.array([3, 1, 1, 0], np.uint8)
    (places / "data" / "t-labels-idx1-ubyte").write_bytes(idx(labels, 8))
    for code, dtype in {8: "u1", 9: "i1", 11: "i2", 12: "i4", 13: "f4", 14: "f8"}.items():
        held = gzip.compress(idx(images.astype(dtype), code))
        (places / "data" / "t-images-idx3-ubyte").write_bytes(held)
        found = load("file:t-images-idx3-ubyte")
        np.testing.assert_array_equal(found.inputs, images.reshape(4, 6))
        np.testing.assert_array_equal(found.labels[found.targets], labels)
    with pytest.raises(ValueError, match="damaged: 48 bytes announced, 40 there"):
        readers.read_idx(idx(images.astype("u2"), 11)[:-8], "x")


def test_whole_numbers_keep_their_values_for_regression(places):
    (places / "data" / "ages.csv").write_bytes(b"a,age\n1,10\n2,20\n3,10\n")
    found = load("file:ages.csv")
    assert found.classes == 2
    np.testing.assert_array_equal(found.numbers(), [10, 20, 10])
    (places / "data" / "rows.csv").write_bytes(CSV)
    with pytest.raises(ValueError, match=r"classes .no, yes., not numbers"):
        load("file:rows.csv").numbers()


BAD = {
    "words.csv": (b"a,b,y\n1,x,1\n2,z,0\n", "", "columns that are not numbers: b"),
    "missing.csv": (b"a,b,y\n1,,1\n2,3,0\n", "", "missing or not finite in 1 of 2 columns"),
    "lonely.csv": (b"y\n1\n2\n", "", "no column besides"),
    "column.csv": (CSV, "#target=price", "no column 'price': its columns are a, b, c, class"),
    "option.csv": (CSV, "#goal=a", "unknown option 'goal'"),
    "ragged.csv": (b"a,b\n1,2\n1,2,3\n", "", "cannot be read as CSV"),
    "empty": (b"", "", "none of LIBSVM text"),
    "noise": (b"\x01\x00\x02\x03" * 9, "", "none of LIBSVM text"),
    "cut.gz": (gzip.compress(LIBSVM)[:-9], "", "damaged"),
    "bad.svm": (b"1 1:1\n1 x:3\n", "", "no LIBSVM text"),
    "bad.npz": (b"PK\x03\x04 nothing", "", "cannot be read as NPZ"),
    "names.npz": (npz(a=X, b=Y), "", "holds a, b: an NPZ file of data holds inputs and targets"),
    "pickled.npz": (npz(X=X, y=np.array([{}, {}, {}, {}])), "", "cannot be read as NPZ"),
    "uneven.npz": (npz(X=X, y=Y[:3]), "", "one target per example"),
    "none.npz": (npz(X=X[:0], y=Y[:0]), "", "one target per example"),
    "bad.parquet": (b"PAR1 nothing", "", "cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_file_is_an_error_that_says_what_is_wrong(name, places):
    content, options, said = BAD[name]
    (places / "data" / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load(f"file:{name}{options}")


def test_sparse_rows_too_large_to_be_dense_are_refused(places, monkeypatch):
    monkeypatch.setattr(readers, "DENSE_LIMIT", 4 * 2**30)
    (places / "data" / "wide.svm").write_bytes(b"1 1:1\n-1 999999999:1\n")
    with pytest.raises(ValueError, match=r"2 x 999999999 entries, 14.9 GiB .* more than 4.0 GiB"):
        load("file:wide.svm")


def test_files_are_looked_for_in_the_data_folder_then_here(places):
    with pytest.raises(FileNotFoundError) as caught:
        load("file:rows.svm")
    assert str(places / "data" / "rows.svm") in str(caught.value)
    assert str(places / "work" / "rows.svm") in str(caught.value)
    (places / "work" / "rows.svm").write_bytes(LIBSVM)
    assert load("file:rows.svm").inputs.shape == (4, 3)
    (places / "data" / "rows.svm").write_bytes(LIBSVM.splitlines()[0])
    assert load("file:rows.svm").inputs.shape == (1, 3)
    assert load(f"file:{places}/work/rows.svm").inputs.shape == (4, 3)
    good = hashlib.sha256(LIBSVM).hexdigest()
    assert load(f"file:{places}/work/rows.svm#sha256={good}").classes == 2
    with pytest.raises(ValueError, match="not the file that was asked for"):
        load(f"file:rows.svm#sha256={good}")


def test_a_download_happens_once_and_is_held_to_its_checksum(server, places):
    (server.root / "rows.svm").write_bytes(LIBSVM)
    address = f"{server.url}/rows.svm"
    first = load(address)
    np.testing.assert_array_equal(first.inputs, X)
    np.testing.assert_array_equal(load(address).inputs, first.inputs)
    assert server.requests == ["/rows.svm"]
    [kept] = (places / "cache").glob("*rows.svm")
    kept.write_bytes(LIBSVM + b"1 1:1\n")
    with pytest.raises(ValueError, match="not the file that was asked for"):
        load(address)


def test_a_wrong_checksum_leaves_nothing_behind(server, places):
    (server.root / "rows.svm").write_bytes(LIBSVM)
    with pytest.raises(ValueError, match="delivered another file"):
        load(f"{server.url}/rows.svm#sha256={'0' * 64}")
    assert list((places / "cache").iterdir()) == []


@pytest.mark.parametrize(("path", "said"), [
    ("/nowhere.csv", "HTTP 404"), ("/busy", "HTTP 503"), ("/short", "9 of 1000 bytes arrived"),
])  # fmt: skip
def test_a_failed_download_says_so_and_leaves_nothing_behind(path, said, server, places):
    with pytest.raises(ConnectionError, match=said):
        load(f"{server.url}{path}")
    assert list((places / "cache").iterdir()) == []


def test_a_server_that_is_not_there(places):
    with pytest.raises(ConnectionError, match=r"could not be fetched .* OPTIKIT_DATA"):
        load("http://127.0.0.1:9/rows.svm")


def test_offline_uses_what_is_here_and_asks_nobody(server, places, monkeypatch):
    (server.root / "rows.svm").write_bytes(LIBSVM)
    (server.root / "other.svm").write_bytes(LIBSVM)
    load(f"{server.url}/rows.svm")
    monkeypatch.setenv("OPTIKIT_OFFLINE", "1")
    assert load(f"{server.url}/rows.svm").classes == 2
    with pytest.raises(FileNotFoundError, match=r"OPTIKIT_OFFLINE forbids .* as other.svm|put the"):
        load(f"{server.url}/other.svm")
    (places / "data" / "other.svm").write_bytes(LIBSVM)
    assert load(f"{server.url}/other.svm").classes == 2
    assert server.requests == ["/rows.svm"]
    with pytest.raises(FileNotFoundError, match="openml:iris is not in the cache"):
        load("openml:iris")
    monkeypatch.delenv("OPTIKIT_DATA")
    with pytest.raises(FileNotFoundError, match="forbids fetching it"):
        DATA["a9a"]()
    with pytest.raises(FileNotFoundError, match="set OPTIKIT_DATA"):
        DATA["mnist10k"]()


@pytest.mark.parametrize("address", ["ftp://x/y", "file:///etc/hostname", "https:rows.csv"])
def test_only_web_addresses_are_fetched(address):
    with pytest.raises(ValueError, match="no web address"):
        fetch.fetch(address)


@pytest.mark.parametrize("path", ["/..", "/a/..%2f..%2fx", "/", "/.hidden", "/%00"])
def test_the_name_of_a_download_stays_in_the_cache(path):
    name = fetch._file_name(path)
    assert name == os.path.basename(name)
    assert not name.startswith(".")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz_.")


def test_the_cache_follows_the_environment(places, monkeypatch):
    assert fetch.cache_folder() == places / "cache"
    monkeypatch.delenv("OPTIKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert fetch.cache_folder() == pathlib.Path("/xdg/optikit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch.cache_folder() == pathlib.Path.home() / ".cache" / "optikit"
    for value, off in (("1", True), ("yes", True), ("0", False), ("", False)):
        monkeypatch.setenv("OPTIKIT_OFFLINE", value)
        assert fetch.offline() is off


ARFF = b"""@RELATION tiny
@ATTRIBUTE size REAL
@ATTRIBUTE shade {dark,light}
@ATTRIBUTE kind {oak,elm}
@DATA
1.5,light,elm
2,dark,oak
-1,light,oak
"""


@pytest.fixture
def openml(server, monkeypatch):
    """OpenML's answers for one small data set, from the local server."""

    def feature(i, name, kind, target):
        return {"index": str(i), "name": name, "data_type": kind, "is_target": target,
                "is_ignore": "false", "is_row_identifier": "false", "number_of_missing_values": "0"}  # fmt: skip

    features = [feature(0, "size", "numeric", "false"), feature(1, "shade", "nominal", "false"),
                feature(2, "kind", "nominal", "true")]  # fmt: skip
    features[1]["nominal_value"], features[2]["nominal_value"] = ["dark", "light"], ["oak", "elm"]
    about = {"id": "7", "name": "tiny", "version": "1", "status": "active", "format": "ARFF",
             "description": "", "url": "https://www.openml.org/data/v1/download/9",
             "md5_checksum": hashlib.md5(ARFF).hexdigest()}  # fmt: skip
    found = {"data": {"dataset": [{"did": 7, "name": "tiny", "version": 1, "status": "active"}]}}
    api = {
        "api/v1/json/data/list/data_name/tiny/limit/2/data_version/1": found,
        "api/v1/json/data/7": {"data_set_description": about},
        "api/v1/json/data/features/7": {"data_features": {"feature": features}},
        "api/v1/json/data/qualities/7": {
            "data_qualities": {"quality": [{"name": "NumberOfInstances", "value": "3.0"}]}
        },
    }
    files = {path: json.dumps(answer).encode() for path, answer in api.items()}
    for path, content in (files | {"data/v1/download/9": ARFF}).items():
        place = server.root / path / "index.html"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def local(request, **rest):
        path = urllib.request.urlparse(request.full_url).path.rstrip("/")
        return urllib.request.urlopen(f"{server.url}{path}/", **rest)

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", local)
    return server


@pytest.mark.parametrize("which", ["tiny@1", "7"])
def test_openml_sets_are_fetched_once(which, openml, monkeypatch):
    pytest.importorskip("sklearn")
    found = load(f"openml:{which}")
    np.testing.assert_array_equal(found.inputs, [[1.5, 1], [2, 0], [-1, 1]])
    assert found.labels[found.targets].tolist() == ["elm", "oak", "oak"]
    asked = len(openml.requests)
    monkeypatch.setenv("OPTIKIT_OFFLINE", "1")
    np.testing.assert_array_equal(load(f"openml:{which}").inputs, found.inputs)
    assert len(openml.requests) == asked


@pytest.mark.filterwarnings("ignore:A network error")
def test_openml_errors_are_said(openml, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ConnectionError, match=r"openml:99 could not be fetched"):
        load("openml:99")
    for wrong in ("openml:", "openml:7@1", "openml:tiny@new"):
        with pytest.raises(ValueError, match="write openml:NAME"):
            load(wrong)


def test_names_and_loaders_of_the_users_own():
    assert load(lambda: (X, Y)).classes == 2
    with pytest.raises(ValueError, match=r"unknown data set 'irsi': choose from .* 'file:PATH'"):
        load("irsi")
    for wrong in ("ftp://x", "C:\\rows.csv", "my_lab:"):
        with pytest.raises(
            ValueError, match=r"unknown address .* begin with file:, http:, https:, openml:"
        ):
            load(wrong)
    with pytest.raises(ImportError, match=r"no module 'ftp'; .* Other addresses begin with file:"):
        load("ftp:x")
    with pytest.raises(ImportError, match="module 'math' has no 'rows'"):
        load("math:rows")


@pytest.mark.skipif(not os.environ.get("OPTIKIT_DATA"), reason="OPTIKIT_DATA is not set")
@pytest.mark.parametrize(("name", "shape", "classes"), [
    ("a9a", (32560, 123), 2), ("mnist10k", (10000, 784), 10),
])  # fmt: skip
def test_the_real_sets_of_the_data_folder(name, shape, classes, monkeypatch):
    monkeypatch.setenv("OPTIKIT_DATA", REAL)
    try:
        found = load(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert found.inputs.shape == shape
    assert found.classes == classes


REAL = os.environ.get("OPTIKIT_DATA", "")
