"""What the names of files say: which of them are images, what classes they have, and which split they belong to."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from simclr.data.doubts import doubtful_classes, doubtful_names
from simclr.data.languages import ENDINGS, OTHER_NAMES, bare, without_accents
from simclr.data.source import UNLABELLED
from simclr.data.suffixes import IMAGE_SUFFIXES, OTHER_SUFFIXES, suffix_of
from simclr.errors import UserError, printable

FOLDER_NAMES = "folder names"  # where classes come from that `understand` finds
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names}
ALL_SPLITS = SPLITS | {bare(name): split for split, names in OTHER_NAMES.items() for name in names}
WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+")  # of a name such as trainSet_1, TRAIN-SET or train2017
# Folders that operating systems, NAS boxes and archive programs add.
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "#recycle", "lost+found"}
SYSTEM_NAMES |= {"system volume information", "icon\r"}
# A part of a path that starts with a dot or is one of SYSTEM_NAMES. For many files a pattern is faster than a split.
HIDDEN = re.compile(rf"(?:^|/)(?:\.|(?:{'|'.join(map(re.escape, sorted(SYSTEM_NAMES)))})(?:/|\Z))", re.IGNORECASE)
PICTURES = {"images", "image", "imgs", "img", "jpegimages", "pictures"}
ANNOTATIONS = {"masks", "mask", "labels", "label", "annotations", "annotation", "ground_truth", "groundtruth", "gt"}
ANNOTATIONS |= {"segmentations", "segmentation", "segmentationclass", "segmentationobject", "trimaps", "bboxes"}
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".rar", ".7z"}
LISTS = {".txt", ".csv", ".tsv", ".json", ".xlsx"}  # of files that may say which images are for testing


class Layout(NamedTuple):
    """How the images among some files are labelled and split. Images without a label have UNLABELLED as theirs."""

    classes: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]  # name and label of each image of train, and of any of SPLIT_NAMES
    notes: tuple[str, ...]  # sentences for the user: what was ignored, and what was understood
    columns: Mapping[str, Mapping[str, str]] | None = None  # of a table: the value of each image, by its name


class ClassesUnclear(UserError):  # noqa: N818 (it describes the folders)
    """Folders may or may not be classes, which matters only where classes are needed."""


class _Folder(NamedTuple):
    path: str  # "" for the outermost one, else it ends in a slash
    files: list[str]  # complete names
    folders: dict[str, _Folder]

    def all_files(self) -> Iterator[str]:
        """The names of all files in this folder and below."""
        yield from self.files
        for folder in self.folders.values():
            yield from folder.all_files()


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one that an operating system adds to folders of pictures."""
    return HIDDEN.match(name) is not None


def splits_named(names: Iterable[str]) -> dict[str, str]:
    """The split of each name that is one of SPLITS, in any case.

    Those of ALL_SPLITS, in other languages, count where one of them is for training and another one is not.
    """
    every = {name: ALL_SPLITS[bare(name)] for name in names if bare(name) in ALL_SPLITS}
    if "train" in every.values() and len(set(every.values())) > 1:
        return every
    return {name: split for name, split in every.items() if name.lower() in SPLITS}


def image_names(names: Iterable[str], notes: list[str]) -> list[str]:
    """The names of visible files that may be images. Adds a note about the others."""
    visible = [name for name in names if not HIDDEN.search(name)]
    suffixes = Counter(suffix for name in visible if (suffix := suffix_of(name)) in OTHER_SUFFIXES)
    if not suffixes:
        return visible
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
    notes.append(
        f"ignored {_files(suffixes.total())} that can't be {'an image' if suffixes.total() == 1 else 'images'}: {kinds}"
        + "; give an archive alone to read it" * any(s in ARCHIVES for s in suffixes)
    )
    return [name for name in visible if suffix_of(name) not in OTHER_SUFFIXES]


def understand(names: Sequence[str], where: str, *, unlabelled: bool = False) -> Layout:
    """Find the classes and splits of images from the names of files, which are relative paths with slashes.

    The layouts are CLASS/..., SPLIT/CLASS/..., CLASS/SPLIT/... and images without labels, each also within other
    folders. With `unlabelled`, only splits are understood, and no classes. Errors call the whole `where`.

    Raises UserError if there are no images, and for layouts that could be understood in more than one way:
    ClassesUnclear where `unlabelled` says how.
    """
    notes: list[str] = []
    images = image_names(names, notes)
    if not images:
        ignored = f" ({notes[0]})" if notes else ""
        remedy = ". Unpack the archives first" if any(suffix_of(name) in ARCHIVES for name in names) else ""
        expected = "expected image files, or one folder of them for each class"
        raise UserError(f"no images in {where}{ignored}: {expected}{remedy}")
    notes += doubtful_names(images)
    roots = _split_roots(_enter(_tree(images), notes), where, notes, unlabelled)
    if len(roots) == 1:
        notes += _lists_of_splits(names)
    else:
        train = roots["train"] = _enter(roots["train"], notes)
        roots = {split: _enter(root, notes, set(train.folders)) for split, root in roots.items()}
    roots = {split: _without_in_classes(root, notes) for split, root in roots.items()}
    flat = ("unlabeled",) if not unlabelled else tuple(SPLIT_NAMES)
    found = {split: {} if split in flat else _classes(root, where, notes) for split, root in roots.items()}
    for part in [part for part in ("val", "test") if found["train"] and part in found and not found[part]]:
        left_out = printable(roots.pop(part).path)
        notes.append(f"left out {left_out}: its images have no label, because they are not in a class folder")
    classes = tuple(sorted(found["train"]))
    if classes:
        notes += doubtful_classes({name: own.folders.keys() for name, own in roots["train"].folders.items()})
    for part in ("val", "test"):
        if extra := sorted(set(found.get(part, {})).difference(classes)):
            raise _unknown_classes(extra, part, classes, where, names)
    splits: dict[str, list[tuple[str, int]]] = {}
    for split in (split for split in SPLIT_NAMES if split in roots):
        if classes and split != "unlabeled":
            labels = enumerate(classes)
            splits[split] = [(name, label) for label, own in labels for name in sorted(found[split].get(own, []))]
        else:
            splits[split] = [(name, UNLABELLED) for name in sorted(roots[split].all_files())]
    return Layout(classes, splits, tuple(notes))


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _tree(names: Iterable[str]) -> _Folder:
    root = _Folder("", [], {})
    known = {"": root}

    def at(path: str) -> _Folder:
        if path not in known:
            above, _, own = path.rpartition("/")
            known[path] = at(above).folders[own] = _Folder(f"{path}/", [], {})
        return known[path]

    for name in names:
        at(name.rpartition("/")[0]).files.append(name)
    return root


def _enter(folder: _Folder, notes: list[str], classes: Collection[str] = ()) -> _Folder:
    """The folder that holds the classes: the only one in a folder, or the one of the images beside annotations.

    It is not within one of the `classes` that are known.
    """
    entered = None
    while folder.folders and not _loose_images(folder):
        inner = list(folder.folders.values())
        pictures = [name for name in folder.folders if name.lower() in PICTURES]
        others = [name for name in folder.folders if name.lower() in ANNOTATIONS]
        if len(pictures) == 1 and others and len(inner) == 1 + len(others):
            folder = _without(folder, others, notes).folders[pictures[0]]
        elif (
            len(inner) == 1
            and not folder.folders.keys() & set(classes)
            and not _loose_images(inner[0])
            and inner[0].folders
        ):
            folder = entered = inner[0]
        else:
            break
    if entered:
        notes.append(f"using the folder {printable(entered.path)}, which contains everything")
    return folder


def _loose_images(folder: _Folder) -> list[str]:
    """The files directly in a folder that are images by their suffix."""
    return [name for name in folder.files if suffix_of(name) in IMAGE_SUFFIXES]


def _without(folder: _Folder, others: list[str], notes: list[str]) -> _Folder:
    """A folder without those of its folders that hold annotations."""
    for name in others:
        count = len(list(folder.folders[name].all_files()))
        notes.append(f"ignored {printable(folder.folders[name].path)} ({_files(count)}), annotations of the images")
    return folder._replace(folders={name: inner for name, inner in folder.folders.items() if name not in others})


def _without_in_classes(root: _Folder, notes: list[str]) -> _Folder:
    """A folder without the folders of annotations that lie beside the images of each of its classes."""
    found: dict[str, list[str]] = {}  # class: names of its folders
    for name, of_class in root.folders.items():
        others = [inner for inner in of_class.folders if inner.lower() in ANNOTATIONS]
        pictures = [inner for inner in of_class.folders if inner.lower() in PICTURES]
        alone = len(of_class.folders) == len(others) + len(pictures)
        if others and alone and (pictures or _loose_images(of_class)):
            found[name] = others
    return _without_those(root, found, notes)


def _without_those(root: _Folder, found: dict[str, list[str]], notes: list[str]) -> _Folder:
    """A folder whose subfolders lack some of their own, which contain annotations."""
    if not found:
        return root
    left_out = [root.folders[name].folders[inner] for name, own in found.items() for inner in own]
    count = sum(len(list(folder.all_files())) for folder in left_out)
    shown = printable(left_out[0].path) + (f" and {len(left_out) - 1:,} more" if len(left_out) > 1 else "")
    notes.append(f"ignored {shown} ({_files(count)}), annotations of the images")
    kept = {
        name: _without(folder, found[name], []) if name in found else folder for name, folder in root.folders.items()
    }
    return root._replace(folders=kept)


def _split_roots(root: _Folder, where: str, notes: list[str], unlabelled: bool) -> dict[str, _Folder]:
    """The folder of each split. The whole is `train` unless its folders, or those of its classes, are splits.

    With `unlabelled`, one folder `train` among others may be an album.
    """
    named = _named_splits(root, where)
    if not named or (
        len(root.folders) == 1 and "train" not in named.values()
    ):  # a test set alone is images like others
        return _splits_within_classes(root, where, notes) or {"train": root}
    root = _without(root, [name for name in root.folders if name.lower() in ANNOTATIONS], notes)
    place, shown = _place(root, where), ", ".join(f"'{name}'" for name in sorted(named))
    others = sorted(printable(name) for name in root.folders if name not in named)
    if others and unlabelled and set(named.values()) == {"train"}:
        return {"train": root}
    if others:
        raise UserError(
            f"{place} has folders {', '.join(others[:5])} beside {shown}: expected only splits ({', '.join(SPLITS)}) "
            "or only classes. Move the others elsewhere, or rename a class that has the name of a split"
        )
    if "train" not in named.values():
        raise UserError(f"{place} has the folders {shown} but no 'train': call the folder of the training images train")
    for split in named.values():
        if len(same := sorted(name for name in named if named[name] == split)) > 1:
            raise UserError(
                f"{place} has the folders {' and '.join(same)}, which are names of one split: join them, or move one "
                f"of them elsewhere"
            )
    if renamed := [f"{name}/ is {split}" for name, split in named.items() if name != split]:
        notes.append(f"understood splits: {', '.join(sorted(renamed))}")
    if root.files:
        notes.append(f"ignored {_files(len(root.files))} beside the splits, such as {printable(root.files[0])}")
    return {split: root.folders[name] for name, split in named.items()}


def _named_splits(root: _Folder, where: str) -> dict[str, str]:
    """The splits that folders are named after: train and Test, or else seg_train and seg_test, trainset and testset.

    Raises UserError for names that are both splits and classes, such as trainA, trainB, testA and testB.
    """
    if exact := splits_named(root.folders):
        return exact
    found: dict[str, str] = {}
    rests: dict[str, set[str]] = {}  # what else names say: the splits that say it
    for name in root.folders:
        words = [part for word in WORD.findall(without_accents(name)) for part in _parts(bare(word))]
        known = [word for word in words if word in SPLITS] or [word for word in words if word in ALL_SPLITS]
        if len(splits := {ALL_SPLITS[word] for word in known}) == 1:
            found[name] = next(iter(splits))
            rests.setdefault(" ".join(word for word in words if word not in known), set()).add(found[name])
    if len(rests) == 1 and len(found) > 1 and "train" in found.values():
        return found
    if len(rests) > 1 and all("train" in splits and len(splits) > 1 for splits in rests.values()):
        raise UserError(
            f"{_place(root, where)} has the folders {', '.join(sorted(map(printable, found))[:5])}, whose names are "
            f"both splits and classes: move them into one folder for each split, such as train/{next(iter(rests))}"
        )
    return {}


def _parts(word: str) -> list[str]:
    """A word, or the name of a split and the ending that follows it, as in trainset."""
    for ending in ENDINGS:
        if word not in ALL_SPLITS and (start := word.removesuffix(ending)) in ALL_SPLITS:
            return [start, ending]
    return [word]


def _splits_within_classes(root: _Folder, where: str, notes: list[str]) -> dict[str, _Folder]:
    """The folder of each split in the layout CLASS/SPLIT/..., or none if this is another layout.

    Raises UserError if a class has a folder for validation or testing, and not all classes are laid out in this way.
    """
    splits = splits_named({name for of_class in root.folders.values() for name in of_class.folders})
    if not (inner := set(splits.values())):
        return {}
    found = {name: [own for own in each.folders if own.lower() in ANNOTATIONS] for name, each in root.folders.items()}
    own_notes: list[str] = []
    without = _without_those(root, {name: others for name, others in found.items() if others}, own_notes)
    roots: dict[str, _Folder] = {}
    for name, of_class in without.folders.items():
        named = {splits.get(own, own): folder for own, folder in of_class.folders.items()}
        odd = [*of_class.files, *(folder.path for split, folder in named.items() if split not in SPLIT_NAMES)]
        if odd or not named or len(named) < len(of_class.folders) or ("train" not in named and len(inner) > 1):
            if not inner & {"val", "test"}:
                return {}  # all images are for training, however they are understood
            reason = f"has {printable(odd[0])}" if odd else "has two folders of one split, or no folder train"
            raise UserError(
                f"{_place(root, where)} has classes with folders that are named like splits, but the class "
                f"'{printable(name)}' {reason}: expected the same splits ({', '.join(SPLITS)}) and nothing else in "
                "each class. Move the rest elsewhere, or rename folders that are not splits"
            )
        for split, folder in named.items():
            roots.setdefault(split, _Folder(f"*/{split}/", [], {})).folders[name] = folder
    if "train" not in roots:  # test sets alone are images like others
        return {}
    notes += [*own_notes, f"understood splits within the classes: {', '.join(roots)}"]
    return roots


def _classes(root: _Folder, where: str, notes: list[str]) -> dict[str, list[str]]:
    """The names of the images of each class in the folder of a split; none if it has no folders."""
    if not root.folders:
        return {}
    if loose := _loose_images(root):
        raise ClassesUnclear(
            f"{_place(root, where)} has images (such as {printable(loose[0].rpartition('/')[2])}) beside folders: move "
            f"them into a class folder or elsewhere, or add --unlabelled (--set data.unlabelled=true) if the folders "
            f"are not classes"
        )
    if root.files:
        notes.append(f"ignored {_files(len(root.files))} beside the classes, such as {printable(root.files[0])}")
    return {name: list(folder.all_files()) for name, folder in root.folders.items()}


def _lists_of_splits(names: Iterable[str]) -> list[str]:
    """A warning about files such as train.txt and test.txt, where there are no other splits, or an empty list."""
    found: dict[str, str] = {}
    for name in (name for name in names if suffix_of(name) in LISTS and not HIDDEN.search(name)):
        words = (word.lower() for word in WORD.findall(name.rpartition("/")[2]))
        if len(splits := {SPLITS[word] for word in words if word in SPLITS}) == 1:
            found.setdefault(splits.pop(), name)
    if "train" not in found or found.keys().isdisjoint({"val", "test"}):
        return []
    shown = " and ".join(sorted(map(printable, found.values())))
    return [
        f"warning: {shown} are not read, and may say which images are for testing: to hold those out, add --labels "
        f"TABLE with a column split"
    ]


def _place(folder: _Folder, where: str) -> str:
    return f"{where}/{printable(folder.path)}".rstrip("/")


def _unknown_classes(
    extra: list[str], split: str, classes: tuple[str, ...], where: str, names: Sequence[str]
) -> UserError:
    """The error for classes that train lacks."""
    shown, known = (", ".join(f"'{printable(name)}'" for name in some[:5]) for some in (extra, classes))
    more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
    text = (
        f"{where} has the class{'es' * (len(extra) > 1)} {shown} in {split}, but not in train, whose folders are "
        f"{known or 'not classes'}{more}"
    )
    if any(name.rpartition("/")[2] == "val_annotations.txt" for name in names):
        return UserError(
            f"{text}. This is Tiny ImageNet, whose val has another layout: use --dataset tiny-imagenet (unpack an "
            f"archive first)"
        )
    one, other = ({unicodedata.normalize("NFC", name) for name in some} for some in (extra, classes))
    if one & other:
        text += " (some names look the same, but are written with other Unicode characters)"
    return ClassesUnclear(
        f"{text}. Give the folders of a class the same name in all splits, or add --unlabelled (--set "
        f"data.unlabelled=true) to train without labels"
    )
