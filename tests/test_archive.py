"""Archives of images: they give what the folder gives, and no image is unpacked."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from photographs import encoded, photograph, tree_of, write_classes

from convscope.data.ingest import open_path
from convscope.data.loading import load
from convscope.data.quality import check_path
from convscope.data.sources import archive, find_source
from convscope.errors import DataError

pytestmark = pytest.mark.usefixtures("own_cache")

ENDINGS = {
    ".zip": "w",
    ".tar": "w",
    ".tar.gz": "w:gz",
    ".tgz": "w:gz",
    ".tar.bz2": "w:bz2",
    ".tar.xz": "w:xz",
}


@pytest.fixture
def photos(tmp_path):
    for seed, split in enumerate(("train", "test")):
        write_classes(tmp_path / "photos" / split, count=6 - 2 * seed, seed=seed)
    return tmp_path / "photos"


def content_of(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.*"))}


def pack(path, files):
    """Write files, by name and in that order, into an archive."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, raw in files:
                packed.writestr(name, raw)
    else:
        with tarfile.open(
            path, ENDINGS["".join(path.suffixes[-2:]) if ".tar" in path.name else path.suffix]
        ) as tape:
            for name, raw in files:
                entry = tarfile.TarInfo(name)
                entry.size = len(raw)
                tape.addfile(entry, io.BytesIO(raw))
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_archive_gives_what_its_folder_gives(tmp_path, photos, ending):
    packed = load(pack(tmp_path / f"photos{ending}", content_of(photos).items()))
    folder = load(photos)
    assert packed.fingerprint == folder.fingerprint
    assert packed.name == "photos"
    assert list(packed.test.names) == list(folder.test.names)


def test_a_tar_is_read_in_any_order_and_a_few_images_at_a_time(tmp_path, photos, monkeypatch):
    files = content_of(photos)
    monkeypatch.setattr(archive, "CHUNK_BYTES", 8_000)
    order = np.random.default_rng(0).permutation(len(files))
    dataset = load(pack(tmp_path / "photos.tgz", [list(files.items())[i] for i in order]), workers=3)
    folder = load(photos)
    ours, theirs = (dict(zip(one.train.names, one.train.images, strict=True)) for one in (dataset, folder))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_what_is_wrapped_around_or_left_behind_is_passed_over(tmp_path, photos):
    files = {f"./download/{name}": raw for name, raw in content_of(photos).items()}
    files |= {f"__MACOSX/{name}": b"\0" for name in files} | {"download/.DS_Store": b"x"}
    odd = encoded(photograph(9), "PNG")
    files |= {"download/train/cat/odd.dat": odd, "download/train/cat/notes.txt": b"miaow"}
    collection = open_path(pack(tmp_path / "photos.tar", files.items()))
    assert len(collection) == 21
    assert "download/train/cat/odd.dat" in set(collection.names)
    assert [(one.kind, one.names) for one in collection.findings] == [
        ("other_file", ("download/train/cat/notes.txt",))
    ]


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_names_that_lead_elsewhere_are_not_used_and_nothing_is_written(tmp_path, photos, ending):
    image = encoded(photograph(9), "PNG")
    astray = ["../evil.png", "/train/cat/evil.png", "train/cat/../../../evil.png"]
    path = pack(
        tmp_path / f"photos{ending}", [*content_of(photos).items(), *((name, image) for name in astray)]
    )
    before = {name: row for name, row in tree_of(tmp_path).items() if b"/cache" not in name}
    report = check_path(path)[0]
    assert report.used == 20
    assert sorted(report.find("astray").names) == sorted(astray)
    assert set(report.left_out) == set(astray)
    assert {name: row for name, row in tree_of(tmp_path).items() if b"/cache" not in name} == before


def test_links_in_a_tar_are_not_followed(tmp_path, photos):
    path = pack(tmp_path / "photos.tar", content_of(photos).items())
    with tarfile.open(path, "a") as tape:
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard"), (tarfile.FIFOTYPE, "pipe")):
            entry = tarfile.TarInfo(f"train/cat/{name}.png")
            entry.type, entry.linkname = kind, "/etc/passwd"
            tape.addfile(entry)
    assert len(open_path(path)) == 20
    assert load(path).left_out == (
        ("train/cat/hard.png", "only links to another"),
        ("train/cat/soft.png", "only links to another"),
    )


def test_a_file_that_unpacks_to_more_than_an_image_may_have_is_left_out(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(archive, "BYTE_CAP", 100_000)
    files = content_of(photos) | {"train/cat/bomb.png": bytes(50_000_000)}
    path = pack(tmp_path / "photos.zip", files.items())
    assert path.stat().st_size < 1_000_000
    assert dict(load(path).left_out) == {"train/cat/bomb.png": "0 MB"}


def test_of_two_files_with_one_name_the_last_counts(tmp_path, photos):
    files = content_of(photos)
    newer = encoded(photograph(77), "PNG")
    dataset = load(pack(tmp_path / "photos.tar", [*files.items(), ("train/cat/000.png", newer)]))
    images = dict(zip(dataset.train.names, dataset.train.images, strict=True))
    assert len(images) == 12
    assert (images["train/cat/000.png"] == photograph(77)).all()


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_an_archive_that_is_cut_short_is_refused(tmp_path, photos, ending):
    path = pack(tmp_path / f"photos{ending}", content_of(photos).items())
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2 + 100])
    with pytest.raises(DataError, match="to be a whole archive"):
        load(path)
    path.write_bytes(b"something else" * 100)
    with pytest.raises(DataError, match="to be a whole archive"):
        load(path)


def test_a_damaged_place_in_a_zip_costs_one_image(tmp_path, photos):
    path = pack(tmp_path / "photos.zip", content_of(photos).items())
    with zipfile.ZipFile(path) as packed:
        info = packed.getinfo("train/cat/003.png")
    raw = bytearray(path.read_bytes())
    raw[info.header_offset + 100] ^= 0xFF
    path.write_bytes(raw)
    [(name, reason)] = load(path).left_out
    assert name == "train/cat/003.png" and "a damaged place in its archive" in reason


def test_an_archive_without_classes_says_why(tmp_path):
    path = pack(tmp_path / "flat.zip", [("1.png", encoded(photograph(1), "PNG"))])
    with pytest.raises(DataError, match="1 image that lie in no class's folder"):
        load(path)


def patched(path, changes):
    """Change bytes of every header of a ZIP: of those before the files, and of those at its end."""
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as packed:
        starts = [info.header_offset for info in packed.infolist()]
        place = packed.start_dir
    for start in starts:
        for offset, change in changes.items():
            raw[start + offset] = change(raw[start + offset])
    while raw[place : place + 4] == b"PK\1\2":
        for offset, change in changes.items():  # here two bytes further on
            raw[place + offset + 2] = change(raw[place + offset + 2])
        place += 46 + sum(int.from_bytes(raw[place + at : place + at + 2], "little") for at in (28, 30, 32))
    path.write_bytes(raw)
    return path


def test_a_zip_of_windows_has_backslashes(tmp_path, photos):
    path = pack(tmp_path / "photos.zip", content_of(photos).items())
    raw = path.read_bytes()
    for name in content_of(photos):
        raw = raw.replace(name.encode(), name.replace("/", "\\").encode())
    path.write_bytes(raw)
    assert load(path).fingerprint == load(photos).fingerprint


def test_names_in_utf_8_are_read_though_the_zip_does_not_say_so(tmp_path):
    files = [
        (f"{name}/{i}.png", encoded(photograph(i), "PNG")) for name in ("Kätze", "Öhu") for i in range(4)
    ]
    path = pack(tmp_path / "photos.zip", files)
    assert load(patched(path, {7: lambda flags: flags & ~0x08})).class_names == ("Kätze", "Öhu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({6: lambda flags: flags | 1}, "to need no password, got an encrypted archive. Unpack it"),
        ({8: lambda _: 9}, "by Deflate, bzip2 or LZMA, got method 9 of ZIP. Unpack it"),
    ],
)
def test_a_zip_that_python_cannot_unpack_is_refused(tmp_path, photos, changes, message):
    path = pack(tmp_path / "photos.zip", (content_of(photos) | {"notes.txt": b"miaow"}).items())
    with pytest.raises(DataError, match=message):
        load(patched(path, changes))


def test_a_damaged_place_that_is_no_image_costs_nothing(tmp_path, photos):
    path = pack(tmp_path / "photos.zip", [("notes.txt", b"miaow"), *content_of(photos).items()])
    raw = bytearray(path.read_bytes())
    raw[30 + len("notes.txt")] ^= 0xFF
    path.write_bytes(raw)
    assert load(path).fingerprint == load(photos).fingerprint


def test_what_an_archive_holds_beside_images_is_not_passed_over_in_silence(tmp_path, photos):
    arrays = content_of(photos) | {"more.npz": b"PK", "labels.csv": b"path,label\ntrain/cat/000.png,\n"}
    report = check_path(pack(tmp_path / "photos.zip", arrays.items()))[0]
    finding = report.find("unused_table")
    assert (finding.names, finding.advice) == (("more.npz",), "Unpack it, and give the folder.")
    assert "more.npz" in report.verdict or "labels" in report.verdict
    messages = " ".join(found.message for found in report.findings)
    assert (
        "1 table not used, the folders give the labels. Expected a label in row 1 of labels.csv" in messages
    )
    flat = pack(tmp_path / "flat.zip", [("1.png", encoded(photograph(1), "PNG")), ("more.npz", b"PK")])
    with pytest.raises(DataError, match=r"more\.npz is not read\. Unpack it"):
        load(flat)
    (tmp_path / "folder").mkdir()
    flat.rename(tmp_path / "folder" / "photos.zip")
    with pytest.raises(DataError, match=r"its own path: .*photos\.zip"):
        load(tmp_path / "folder")


def labels_of(dataset):
    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if part is not None]
    return {
        name: (dataset.class_names[label], image.tobytes())
        for part in parts
        for name, label, image in zip(part.names, part.labels, part.images, strict=True)
    }


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_in_an_archive_gives_the_labels_that_it_gives_in_a_folder(tmp_path, ending):
    folder = tmp_path / "contest"
    (folder / "images").mkdir(parents=True)
    rows = ["image_id,label"]
    for number in range(20):
        (folder / "images" / f"{number}.png").write_bytes(encoded(photograph(number), "PNG"))
        rows.insert(1, f"{number},{'dog' if number % 3 else 'cat'}")
    (folder / "train.csv").write_text("\n".join(rows))
    packed = pack(tmp_path / f"contest{ending}", sorted(content_of(folder).items(), reverse=True))
    dataset, expected = load(packed), load(folder)
    assert dataset.class_names == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (len(expected.train), len(expected.test))
    assert labels_of(dataset) == labels_of(expected)
    assert find_source(packed).layout == "an archive; a table of paths and labels (train.csv): train"


def test_a_table_beside_folders_in_an_archive_has_the_last_word(tmp_path, photos):
    files = content_of(photos)
    rows = [f"photos/{name},{'odd' if int(name[-5]) % 2 else 'even'}" for name in files]
    table = "\n".join(["path,label", *rows]).encode()
    wrapped = {f"photos/{name}": raw for name, raw in files.items()}
    dataset = load(pack(tmp_path / "photos.zip", [*wrapped.items(), ("parity.csv", table)]))
    assert dataset.class_names == ("even", "odd")
    same = "\n".join(["path,label", *(f"photos/{name},{name.split('/')[1]}" for name in files)]).encode()
    dataset = load(pack(tmp_path / "same.zip", [*wrapped.items(), ("names.csv", same)]))
    assert dataset.class_names == ("cat", "dog")


def test_rows_of_a_table_that_fit_no_file_of_the_archive_are_told(tmp_path):
    images = [(f"{number}.png", encoded(photograph(number), "PNG")) for number in range(12)]
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(14)]
    table = "\n".join(["file,label", *rows, "../out.png,a"]).encode()
    source = find_source(pack(tmp_path / "a.zip", [*images, ("labels.csv", table)]))
    assert len(source.index) == 12
    assert [found.names for found in source.findings if found.kind == "missing"] == [
        ("../out.png", "12.png", "13.png")
    ]
    twice = "\n".join(["file,label", *rows[:12], rows[0]]).encode()
    with pytest.raises(DataError, match="each image once in a table of paths"):
        find_source(pack(tmp_path / "twice.zip", [*images, ("labels.csv", twice)]))
    wrong = pack(tmp_path / "wrong.zip", [*images, ("labels.csv", b"file,label\nx.png,a\n")])
    with pytest.raises(DataError, match=r"the files that .*wrong.zip/labels.csv names"):
        find_source(wrong)
    pixels = "\n".join([",".join(["label", *(f"p{n}" for n in range(64))]), ",".join(["1"] * 65)]).encode()
    with pytest.raises(DataError, match=r"Tables of pixels are read unpacked."):
        find_source(pack(tmp_path / "pixels.zip", [("digits.csv", pixels)]))


def test_a_table_too_large_to_be_one_is_named(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(archive, "TABLE_BYTES", 20)
    source = find_source(
        pack(tmp_path / "photos.zip", [*content_of(photos).items(), ("x.csv", b"a,b\n" * 9)])
    )
    assert [found.names for found in source.findings if found.kind == "unused_table"] == [("x.csv",)]
