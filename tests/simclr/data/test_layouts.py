"""Layouts that people keep images in, made on the disk and opened: what is understood, or refused with a remedy.

docs/results/layouts-and-formats.md lists them with what earlier versions said.
"""

import os
from pathlib import Path

import pytest

from simclr.data.dataset import DataConfig, open_dataset
from simclr.errors import UserError
from tests.simclr.data.helpers import Notes, plain, write

TWO = "cat*6 dog*6"
LABELLED = "12 images, 2 classes from folder names: cat, dog; 10 train, 1 validation, 1 test"

# Name: what is in the folder (see `make`), settings of [data], and what is said.
LAYOUTS = {
    "one folder for each class": (TWO, {}, LABELLED),
    "images alone": ("*12", {}, "12 images, without labels"),
    "one folder of images": ("all*12", {}, "12 images, 1 class from folder names: all; 12 train"),
    "train and test": ("train/cat*4 train/dog*4 test/cat*2 test/dog*2", {}, "7 train, 1 validation, 4 test"),
    "Train, Valid, Test": (
        "Train/cat*4 Train/dog*4 Valid/cat*1 Valid/dog*1 Test/cat*1 Test/dog*1",
        {},
        "2 classes from folder names: cat, dog; 8 train, 2 validation, 2 test",
    ),
    "TRAINING and EVAL": ("TRAINING/cat*4 TRAINING/dog*4 EVAL/cat*1 EVAL/dog*1", {}, "7 train, 1 validation, 2 test"),
    "train and val": ("train/cat*6 train/dog*6 val/cat*1 val/dog*1", {}, "To test on val, and hold validation"),
    "train and val, tested on val": (
        "train/cat*6 train/dog*6 val/cat*1 val/dog*1",
        {"test_from": "val"},
        "11 train, 1 validation, 2 test",
    ),
    "everything for training": (
        "train/cat*6 train/dog*6 test/cat*1 test/dog*1",
        {"val_fraction": 0},
        "2 classes from folder names: cat, dog; 12 train, 2 test",
    ),
    "an unpacked archive": ("photos-v2/data/cat*6 photos-v2/data/dog*6 photos-v2/LICENSE", {}, LABELLED),
    "an archive of macOS": ("photos/cat*6 photos/dog*6 __MACOSX/photos/cat/._0.png", {}, LABELLED),
    "train/train": ("train/train/cat*4 train/train/dog*4 test/test/cat*1 test/test/dog*1", {}, "1 validation, 2 test"),
    "splits within classes": (
        "cat/train*4 cat/test*1 dog/train*4 dog/test*1",
        {},
        "2 classes from folder names: cat, dog; 7 train, 1 validation, 2 test",
    ),
    "folders within classes": ("cat/2024/may*3 cat/2025*3 dog*6", {}, LABELLED),
    "thumbnails of a NAS": (f"{TWO} cat/@eaDir*3 @eaDir/cat*3", {}, LABELLED),
    "a recycle bin": (f"{TWO} $RECYCLE.BIN*3 lost+found/", {}, LABELLED),
    "files of Windows": (f"{TWO} cat/Thumbs.db desktop.ini", {}, LABELLED),
    "an empty folder": (f"{TWO} empty/", {}, LABELLED),
    "a folder of texts": (f"{TWO} notes/a.txt notes/b.pdf", {}, LABELLED),
    "texts beside images": (f"{TWO} cat/README.txt cat/0.xml labels.json", {}, "1 .json, 1 .txt, 1 .xml"),
    "sidecar files": (f"{TWO} cat/0.png.json cat/1.xmp dog/2.aae", {}, "1 .aae, 1 .json, 1 .xmp"),
    "names without a suffix": ("cat*5 cat/picture= dog*6", {}, LABELLED),
    "images and masks": ("images*6 masks*6", {}, "6 images, without labels"),
    "images and masks of each split": (
        "train/images*6 train/masks*6 val/images*2 val/masks*2",
        {},
        "8 images, without labels; 6 to pre-train on",
    ),
    "images and masks of each class": (
        "cat/images*6 cat/masks*6 dog/images*6 dog/masks*6",
        {},
        "ignored cat/masks/ and 1 more (12 files), annotations of the images",
    ),
    "masks beside the images of one class": ("cat*6 cat/masks*6 dog*6", {}, LABELLED),
    "images and masks of each split and class": (
        "train/cat/images*4 train/cat/masks*4 train/dog*4 test/cat/images*2 test/cat/masks*2",
        {},
        "10 images, 2 classes from folder names: cat, dog; 7 train, 1 validation, 2 test",
    ),
    "splits within one class only": (
        "cat/train*4 cat/test*4 dog/train*4 dog/test*4 cat/preview.png",
        {},
        "! 'cat' has cat/preview.png",
    ),
    "splits within classes, and a folder": (
        "cat/train*4 cat/test*4 dog/train*4 dog/more*4",
        {},
        "! 'dog' has dog/more/",
    ),
    "splits within classes, one without train": ("cat/train*4 cat/test*4 dog/test*4", {}, "! or no folder train"),
    "a test set within classes": ("cat/test*6 dog/test*6", {}, LABELLED),
    "a folder train within one class": ("cat/train*6 dog*6", {}, LABELLED),
    "several objects of MVTec": (
        " ".join(f"{name}/train/good*6 {name}/test/broken*2 {name}/ground_truth/broken*2" for name in ("bolt", "nut")),
        {},
        "16 images, 2 classes from folder names: bolt, nut; 11 train, 1 validation, 4 test",
    ),
    "an album called train": ("train*6 2025*6", {"unlabelled": True}, "12 images, without labels"),
    "an album called test": ("test*6 2025*6", {"unlabelled": True}, "! has folders 2025 beside 'test'"),
    "YOLO": (
        "images/train*6 images/val*2 labels/train/0.txt labels/val/0.txt data.yaml",
        {},
        "8 images, without labels; 6 to pre-train on",
    ),
    "Pascal VOC": (
        "VOC/JPEGImages*6 VOC/Annotations/0.xml VOC/ImageSets/a.txt VOC/SegmentationClass*2",
        {},
        "6 images, without labels",
    ),
    "an unlabelled split": ("train/cat*4 train/dog*4 unlabeled*5", {}, "6 train, 1 validation, 1 test, 5 without lab"),
    "splits of one word more": ("seg_train/cat*6 seg_train/dog*6 seg_test/cat*2 seg_test/dog*2", {}, "11 train, 1 val"),
    "splits within folders of their name": (
        "training_set/training_set/cat*4 training_set/training_set/dog*4 test_set/test_set/cat*2",
        {},
        "understood splits: test_set/ is test, training_set/ is train",
    ),
    "splits with numbers": ("1_train/cat*6 1_train/dog*6 2-VAL/cat*1 2-VAL/dog*1", {}, "2-VAL/ is val"),
    "Spanish splits": (
        "entrenamiento/cat*4 entrenamiento/dog*4 prueba/cat*1 prueba/dog*1",
        {},
        "understood splits: entrenamiento/ is train, prueba/ is test",
    ),
    "French splits, one of them an English word": (
        "Apprentissage/cat*4 Apprentissage/dog*4 test/cat*1 test/dog*1",
        {},
        "7 train, 1 validation, 2 test",
    ),
    "German splits": (
        "Trainingsdaten/cat*4 Trainingsdaten/dog*4 Validierungsdaten/cat*1 PRU\u0308FDATEN/dog*1",
        {},
        "PRU\u0308FDATEN/ is test, Trainingsdaten/ is train, Validierungsdaten/ is val",
    ),
    "Chinese splits": ("训练集/cat*4 训练集/dog*4 测试集/cat*2", {}, "7 train, 1 validation, 2 test"),
    "Portuguese splits within classes": (
        "cat/treino*4 cat/teste*1 dog/treino*4 dog/teste*1",
        {},
        "understood splits within the classes: test, train",
    ),
    "splits in a language that is not known": (
        "obuka/cat*4 obuka/dog*4 ispit/cat*1 ispit/dog*1",
        {},
        "warning: ispit, obuka are taken for classes, although each of them has the folders cat, dog: if they are",
    ),
    "masks with other suffixes beside the images": (
        f"{TWO} dog/0.jpg=cat/0.png",
        {},
        "warning: 1 image has the same name as another, except for the suffix, such as dog/0.jpg and dog/0.png",
    ),
    "lists of splits": (
        "images/cat*4 images/dog*4 meta/train.txt meta/test.txt",
        {},
        "warning: meta/test.txt and meta/train.txt are not read, and may say which images are for testing",
    ),
    "folders in folders": (
        "a/b/c/cat*6 a/b/c/dog*6",
        {},
        "using the folder a/b/c/, which contains everything\nof 12 images",
    ),
    "an archive in a folder": (
        "photos.zip labels.csv",
        {},
        "! 1 .csv, 1 .zip; give an archive alone to read it): expected image files, or one folder of them for each "
        "class. Unpack the archives first",
    ),
    "splits in one word": ("trainset/cat*4 trainset/dog*4 testset/cat*2", {}, "testset/ is test, trainset/ is train"),
    "another folder beside Spanish splits": ("entrenamiento/cat*4 prueba/cat*2 otros*3", {}, "! has folders otros"),
    "a class with a word of Spanish splits": ("prueba*6 perro*6", {}, "2 classes from folder names: perro, prueba"),
    "COCO": ("train2017*6 val2017*2 annotations/a.json", {}, "8 images, without labels; 6 to pre-train on"),
    "another folder beside such splits": (
        "seg_train/cat*4 seg_test/cat*2 seg_pred*3",
        {},
        "! has folders seg_pred beside",
    ),
    "CycleGAN": ("trainA*4 trainB*4 testA*2 testB*2", {}, "! names are both splits and classes"),
    "classes with words of splits": (
        "train_station*6 test_tube*6",
        {},
        "2 classes from folder names: test_tube, train_st",
    ),
    "classes that differ in capitals": ("cat*6 Cat*6", {}, "warning: 'Cat' and 'cat' are different classes"),
    "a misspelled class": (
        "stripes*6 stripse*3 dots*7 tall*1",
        {},
        "warning: 2 of 4 classes have fewer than 5 images: 'stripse' (3, did you mean 'stripes'?), 'tall' (1). Add",
    ),
    "one class in two forms of Unicode": (
        "train/caf\u00e9*6 train/dog*6 val/cafe\u0301*2",
        {},
        "! some names look the same, but are written with other Unicode characters",
    ),
    "albums": ("2024*6 2025*6", {"unlabelled": True}, "12 images, without labels"),
    "test images without labels": ("train/cat*6 train/dog*6 test*3", {}, "left out test/: its images have no label"),
    "a link back": (f"{TWO} cat/up->..", {}, "left out cat/up: links to folders that are read already"),
    "a link out of the folder": ("cat*6 dog/up->../..  dog*6", {}, LABELLED),
    "two classes in one folder": ("cat*6 dog->cat emu*6", {}, "2 classes from folder names: cat, emu"),
    "a pipe": (f"{TWO} cat/pipe.png|", {}, "left out cat/pipe.png: neither files nor folders"),
    "a name that is not UTF-8": ("caf\udce9*6 dog*6", {}, r"2 classes from folder names: caf\udce9, dog"),
    "test images that are in train": (
        "train/cat*4 train/dog*4 test/cat/0.png=train/cat/0.png test/dog*1",
        {},
        "warning: 1 of 2 test images also occur in train or val",
    ),
    "an image in two classes": (f"{TWO} dog/again.png=cat/0.png", {}, "1 image occurs in more than one class"),
    "copies in one class": (
        "cat*6 dog*6 " + " ".join(f"{name}/copy-{i}.png={name}/{i}.png" for name in ("cat", "dog") for i in range(6)),
        {},
        "24 images, 2 classes from folder names: cat, dog; 20 train, 2 validation, 2 test",
    ),
    "bursts": (
        " ".join(f"{name}/b{i // 2}-{i}.png" for name in ("cat", "dog") for i in range(10)),
        {"group": r"\w+/b\d", "val_fraction": 0.2},
        "20 images, 2 classes from folder names: cat, dog; 12 train, 4 validation, 4 test",
    ),
    "a group that few names have": (f"{TWO} cat/p1.png", {"group": r"p\d"}, "! finds no group in 12 of 13 names"),
    "a broken file, skipped": (f"{TWO} cat/bad.png!", {"on_bad_image": "skip"}, "1 of 13 files can't be read"),
    "many broken files, skipped": (
        "cat*2 dog*2 " + " ".join(f"cat/bad{i}.png!" for i in range(4)),
        {"on_bad_image": "skip"},
        "! allow more with --on-bad-image 0.5",
    ),
    "a broken link": (f"{TWO} cat/gone.png->nowhere", {}, "! cat/gone.png (there is no such file, or it is a link"),
    "MVTec": (
        "bottle/train/good*6 bottle/test/good*1 bottle/test/broken*2 bottle/ground_truth/broken*2",
        {},
        "! has the class 'broken' in test, but not in train",
    ),
    "MVTec, unlabelled": (
        "bottle/train/good*6 bottle/test/good*1 bottle/test/broken*2 bottle/ground_truth/broken*2",
        {"unlabelled": True},
        "9 images, without labels; 6 to pre-train on",
    ),
    "another spelling in val": ("train/cat*4 train/dog*4 val/Cat*1", {}, "! the class 'Cat' in val, but not in train"),
    "Tiny ImageNet": (
        "train/n1/images*4 train/n2/images*4 val/images*2 val/val_annotations.txt wnids.txt test/images*2",
        {},
        "! use --dataset tiny-imagenet",
    ),
    "val and test without train": ("val/cat*2 test/cat*2", {}, "! the folders 'test', 'val' but no 'train'"),
    "val and valid": ("train/cat*4 val/cat*1 valid/cat*1", {}, "! val and valid, which are names of one split"),
    "another folder beside train": ("train/cat*4 extra/cat*4", {}, "! has folders extra beside 'train'"),
    "a class called test": ("cat*4 dog*4 test*4", {}, "! has folders cat, dog beside 'test'"),
    "images beside classes": (f"{TWO} loose.png", {}, "! (such as loose.png) beside folders"),
    "other images beside a folder": ("thumbs*6 1.jp2 2.JFIF", {}, "! (such as 1.jp2) beside folders"),
    "images beside classes, unlabelled": (f"{TWO} loose.png", {"unlabelled": True}, "13 images, without labels"),
    "texts alone": ("a.txt b.txt", {}, "! no images in"),
    "hidden images": (".hidden*4", {}, "! no images in"),
}


def make(root: Path, text: str) -> None:
    """Make what the words of a text name: images NAME.png or FOLDER*COUNT, FOLDER/, copies NAME=OTHER, links NAME->TO.

    NAME= is an image too, NAME! a broken one, and NAME| a pipe.
    """
    value = 0
    root.mkdir(parents=True)
    for word in text.split():
        name, arrow, target = word.partition("->")
        name, equals, other = name.partition("=")
        folder, star, count = name.partition("*")
        path = root / name.rstrip("|!")
        if star:
            names = [root / folder / f"{i}.png" for i in range(int(count))]
        else:
            names = [path] if not arrow and (name.endswith(".png") or equals) else []
        for each in names:
            write(each, (root / other).read_bytes() if other else plain(value := value + 1))
        if arrow:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        elif name.endswith("|"):
            os.mkfifo(path)
        elif name.endswith("/"):
            path.mkdir(parents=True)
        elif not names:
            write(path, b"text")


def said_about(folder: Path, home: Path, **settings: object) -> str:
    """What opening a folder says, in lines; an error starts with an exclamation mark."""
    observer = Notes()
    try:
        open_dataset(DataConfig(dataset="folder", dir=folder, side=8, **settings), home, observer)
    except UserError as error:
        observer.texts.append(f"! {error}")
    return "\n".join(observer.texts)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_understood_or_refused(name, home, tmp_path):
    text, settings, expected = LAYOUTS[name]
    folder = tmp_path / "outside" / "photos"
    try:
        make(folder, text)
    except OSError:
        pytest.skip("this file system can't hold such a folder")
    said = said_about(folder, home, **settings)
    assert expected.removeprefix("! ") in said
    assert ("! " in said) == expected.startswith("! ")
    assert said.encode()
