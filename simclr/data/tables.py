"""A table (CSV or TSV) of the names of image files and their labels."""

from __future__ import annotations

import codecs
import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from simclr.data.labels import LABEL_NAMES, SPLIT_COLUMNS, number, split_in, unclear
from simclr.data.layout import FOLDER_NAMES, HIDDEN, SPLIT_NAMES, SPLITS, Layout, image_names, splits_named, understand
from simclr.data.names import Names
from simclr.data.source import UNLABELLED
from simclr.errors import UserError, printable, similar_path

FILE_NAMES = ("file", "filename", "file_name", "path", "filepath", "image", "image_path", "image_id", "img", "id")
# Columns whose values group images, for `data.group`: not labels, unless the user says so.
GROUP_NAMES = {"group", "patient", "subject", "case", "study", "individual", "video", "session", "sequence", "burst"}
GROUP_NAMES |= {f"{name}_id" for name in GROUP_NAMES}
MARKS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}  # in a table with a column for each class
NAMELESS = "Unnamed: "  # how pandas calls a column without a name, which numbers the rows
TABLE_SUFFIXES = (".csv", ".tsv")
TEXT_SUFFIXES = (*TABLE_SUFFIXES, ".txt", "")  # of tables that --labels names
SEPARATORS = "\t;,|"
LARGEST_TABLE = 1 << 30  # bytes; a million rows have about 1 << 26
LEFT_OUT = (
    "left out {:,} file{} that {} doesn't list, without reading them. To include an image that has no label, list it "
    "with an empty label"
)
SAMPLE = 1000  # rows in which file names are looked for


def understand_names(
    names: Sequence[str], where: str, *, unlabelled: bool, labels: Path | None, **columns: str | None
) -> tuple[Layout, str]:
    """The layout of images by a table of labels, or else by the names of their folders; and what gave the classes.

    `where` is what errors call the whole. Raises UserError, also for columns without a table.
    """
    if labels is not None:
        layout, origin = understand_table(names, where, labels, unlabelled=unlabelled, **columns)
    else:
        for name in (name for name in columns if columns[name]):
            raise UserError(f"data.{name} names a column of a table: add --labels TABLE (data.labels), or leave it out")
        layout, origin = understand(names, where, unlabelled=unlabelled), FOLDER_NAMES
    return layout, origin if layout.classes else ""


def understand_table(
    names: Sequence[str],
    where: str,
    labels: Path,
    *,
    unlabelled: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> tuple[Layout, str]:
    """The classes and splits of images from a table with a header and a row for each image; and what gave the classes.

    `names` are those of the files, relative with slashes. The table may leave out their suffix and their folder. The
    splits are those of a column, or else those of the folders, and so are the labels. A column that is not named is
    recognised: the one whose values are names of files, and those with usual names. Files that are not in the table are
    left out. An image with an empty label has none. All columns are kept for `data.group`.

    Raises UserError for a table that can't be read, and where columns, rows or labels are unclear.
    """
    notes: list[str] = []
    table = read_table(labels)
    files = Names(image_names(names, []))
    image = _image_column(table, files, labels, where, image_column)
    split = _split_column(table, image, labels, split_column, notes)
    marks = None if unlabelled or label_column else _one_for_each_class(table, {image, split})
    label = None if unlabelled or marks is not None else _label_column(table, {image, split}, labels, label_column)
    labelled = marks is not None or label is not None
    rows = pd.DataFrame({"file": _files(table[image], files, labels)})
    if not (listed := rows["file"].isin(files.names)).any():
        raise UserError(f"{labels} names no file in {where} (such as {table[image][0]}): check --data-dir")
    rows["split"] = table[split].map(splits_named(table[split].unique())) if split else ""
    rows["label"] = marks.idxmax(axis=1) if marks is not None else table[label] if label else ""
    if not split or not (labelled or unlabelled):
        by_folder = understand(sorted(set(rows["file"][listed])), where, unlabelled=unlabelled or labelled)
        rows = _completed(rows, by_folder, split, labelled)
    rows = _without_repeated(rows, table[image], labels, notes)
    texts = {split: rows["label"][rows["split"] == split].to_numpy(str) for split in rows["split"].unique()}
    if "train" not in texts:
        raise UserError(f"{labels} has no images to train on, only {' and '.join(sorted(texts))}: add some")
    classes, numbers = number(texts)
    notes.append(_describe({"file names": image, "labels": label, "splits": split}, marks, table, labels))
    if not labelled and not unlabelled and (groups := [name for name in table.columns if name.lower() in GROUP_NAMES]):
        notes.append(
            f"column '{groups[0]}' is taken as groups (data.group), not as labels: if its values are the classes, add "
            f"--set data.label_column={groups[0]}"
        )
    if left_out := len(files.names) - int(rows["file"].isin(files.names).sum()):
        notes.append(LEFT_OUT.format(left_out, "s" * (left_out > 1), labels.name))
    ordered = {
        split: sorted(zip(rows["file"][rows["split"] == split], numbers[split].tolist(), strict=True))
        for split in SPLIT_NAMES
        if split in numbers
    }
    kept = table.loc[rows.index]
    others = {
        column: dict(zip(rows["file"], kept[column], strict=True)) for column in table.columns.difference([image])
    }
    origin = labels.name if labelled else f"folder names, splits from {labels.name}" if split else FOLDER_NAMES
    return Layout(classes, ordered, tuple(notes), others), origin


def _files(texts: pd.Series, files: Names, labels: Path) -> list[str]:
    """The file that each text names, or the text itself if there is none. Raises UserError if it may be several."""
    found = [files.find(text) for text in texts]
    if unclear_rows := [row for row, names in enumerate(found) if len(names) > 1]:
        first, count = unclear_rows[0], len(unclear_rows)
        raise UserError(
            f"'{printable(texts.iloc[first])}' in {labels} could be {' or '.join(map(printable, found[first]))} "
            f"({count:,} such row{'s' * (count > 1)}): write the folder and the suffix as here, or give the folder of "
            f"the right one as --data-dir"
        )
    return [names[0] if names else text for names, text in zip(found, texts, strict=True)]


def _completed(rows: pd.DataFrame, by_folder: Layout, split: str | None, labelled: bool) -> pd.DataFrame:
    """The rows with the splits and labels of the folders, where the table has no column of them."""
    if not split:
        splits = {name: split for split, own in by_folder.splits.items() for name, _ in own}
        rows["split"] = rows["file"].map(splits).fillna("train")
    if not labelled and len(by_folder.classes) > 1:
        known = (pair for own in by_folder.splits.values() for pair in own)
        classes = {name: by_folder.classes[number] for name, number in known if number != UNLABELLED}
        rows["label"] = rows["file"].map(classes).fillna("")
    return rows


def _describe(columns: dict[str, str | None], marks: pd.DataFrame | None, table: pd.DataFrame, labels: Path) -> str:
    """What each column was taken for, and which others there are. `marks` are those of the classes."""
    of_classes = [] if marks is None else list(marks.columns)
    used = [f"{what} from column '{name}'" for what, name in columns.items() if name]
    used += [f"labels from a column for each class: {_listed(of_classes)}"] if of_classes else []
    unused = [name for name in table.columns if name not in {*columns.values(), *of_classes}]
    return f"{'; '.join(used)} of {labels}" + (f"; other columns: {_listed(unused)}" if unused else "")


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in columns)


def table_among(names: Sequence[str]) -> str | None:
    """The outermost table among files whose images lie all in one place, if it is the only one."""
    tables = [name for name in names if name.lower().endswith(TABLE_SUFFIXES) and not HIDDEN.search(name)]
    least = min((name.count("/") for name in tables), default=0)
    outermost = [name for name in tables if name.count("/") == least]
    places = {name.rpartition("/")[0] for name in image_names(names, [])}
    return outermost[0] if len(outermost) == 1 and len(places) == 1 else None


def tables_beside(names: Sequence[str], folder: Path) -> list[str]:
    """A sentence about the tables among files, which may contain labels, outermost ones first, if there are any."""
    found = [name for name in names if name.lower().endswith(TABLE_SUFFIXES) and not HIDDEN.search(name)]
    if not found:
        return []
    found.sort(key=lambda name: name.count("/"))
    shown = f"{', '.join(map(printable, found[:5]))}{', ...' * (len(found) > 5)}"
    best = next((name for name in found if split_in(name) == "train"), found[0])
    return [
        f"labels are not taken from {shown}: to use a table, add for example --labels {printable(str(folder / best))}"
    ]


def reason_against(labels: Path, images: Sequence[str], any_label: bool) -> str | None:
    """Why a table next to images is not used as the table of their labels, or None if it is. It has to name most of the
    images, and, unless `any_label`, to have a column with a usual name for labels.
    """
    try:
        table = read_table(labels)
    except UserError as error:
        return str(error)
    files = Names(images)
    names = [
        column
        for column in table.columns
        if 2 * len({found for found in map(files.find, table[column]) if len(found) == 1}) > len(images)
    ]
    if not names:
        return "no column names most of the images"
    others = [column for column in table.columns if column not in names and column.lower() not in SPLIT_COLUMNS]
    if others and not any_label and not any(column.lower() in LABEL_NAMES for column in others):
        return f"no column has a usual name for labels ({', '.join(LABEL_NAMES[:4])}, ...)"
    return None


def read_table(path: Path) -> pd.DataFrame:
    """The cells of a table as texts, without spaces around them. Its separator is a comma, a semicolon or a tab."""
    try:
        if path.stat().st_size > LARGEST_TABLE:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for a table of labels")
        if path.suffix.lower() not in TEXT_SUFFIXES:
            raise UserError(
                f"{path} is not a table of labels: save it as a .csv file with a first line such as file,label"
            )
        with path.open("rb") as raw:
            wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as spreadsheets save "Unicode text"
        encoding = "utf-16" if wide else "utf-8-sig"
        with path.open(encoding=encoding) as file:
            lines = (file.readline(100_000) for _ in range(100))
            skipped, header = next((n, line) for n, line in enumerate(lines) if line.strip() and line[:4] != "sep=")
        separator = max(SEPARATORS, key=header.count) if path.suffix.lower() != ".tsv" else "\t"
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
        if twice := {name for name in names if name and names.count(name) > 1}:
            raise UserError(f"{path} has two columns called '{min(twice)}': rename one of them")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # it would drop cells
            table = pd.read_csv(
                path,
                sep=separator,
                dtype=str,
                keep_default_na=False,
                encoding=encoding,
                index_col=False,
                skiprows=skipped,
            )
    except OSError as error:
        meant = f". Did you mean '{near}'?" if not path.exists() and (near := similar_path(path)) else ""
        raise UserError(f"can't read the labels {path}: {error.strerror or error}{meant}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8: save it as a CSV file in UTF-8") from None
    except StopIteration:
        raise UserError(f"{path} is empty: expected a header and a row per image") from None
    except pd.errors.ParserWarning:
        raise UserError(
            f"{path} has rows with more cells than its header: put texts that contain the separator '{separator}' in "
            f"double quotes"
        ) from None
    except ValueError as error:  # pandas' errors on empty files and ragged rows
        reason = " ".join(str(error).split())
        raise UserError(f"can't read {path} as a table: {reason}. Expected a header and a row per image") from None
    table.columns = [name.strip() or f"Unnamed: {n}" for n, name in enumerate(table.columns)]  # as pandas calls them
    if not len(table):
        raise UserError(f"{path} has no rows below its header")
    return pd.DataFrame({column: table[column].str.strip() for column in table.columns})


# --- columns ----------------------------------------------------------------------------------------------------------


def _chosen(table: pd.DataFrame, labels: Path, name: str, setting: str) -> str:
    if name not in table.columns:
        raise unclear(labels, f"has no column '{name}'", table.columns, setting)
    return name


def _image_column(table: pd.DataFrame, files: Names, labels: Path, where: str, name: str | None) -> str:
    """The column with the most names of files. Of two, the one with more different values, or a usual name.

    A class may have the name of a file. So a column of few values doesn't count if most of them name no file, and a
    column with a usual name has many more, unless that may be an id of something else.
    """
    if name is not None:
        return _chosen(table, labels, name, "image_column")
    sample = table.iloc[:: max(1, len(table) // SAMPLE)]
    different = {column: sample[column].nunique() for column in table.columns}
    named = {column: sum(bool(files.find(text)) for text in sample[column].unique()) for column in table.columns}
    usual_names = (column for column in table.columns if column.lower() in FILE_NAMES)
    sure_names = (column for column in usual_names if named[column] or not column.lower().endswith("id"))
    most = max((different[column] for column in sure_names), default=0)

    def score(column: str) -> tuple[int, int, int]:
        by_chance = 2 * named[column] <= different[column] <= most / 2
        usual = FILE_NAMES.index(column.lower()) if column.lower() in FILE_NAMES else len(FILE_NAMES)
        return 0 if by_chance else named[column], different[column], -usual

    scores = {column: score(column) for column in table.columns}
    best = max(scores, key=lambda column: scores[column])
    if not scores[best][0]:
        if len(sample) < len(table):
            raise unclear(labels, f"seems to name no file in {where}", table.columns, "image_column")
        raise UserError(
            f"no column of {labels} names files in {where}: check --data-dir (data.dir), or the names, and that the "
            f"first line of the table names its columns, with a comma, a semicolon or a tab between them"
        )
    if files.find(best):
        raise UserError(f"{labels} has no header, but starts with '{best}': add a first line such as file,label")
    if len(same := [column for column in scores if scores[column] == scores[best]]) > 1:
        raise unclear(labels, f"has the names of files in {' and '.join(same)}", table.columns, "image_column")
    return best


def _split_column(table: pd.DataFrame, image: str, labels: Path, name: str | None, notes: list[str]) -> str | None:
    """The column with the split of each image, if there is one."""
    usual = [column for column in table.columns if column.lower() in SPLIT_COLUMNS and column != image]
    found = _chosen(table, labels, name, "split_column") if name else next(iter(usual), None)
    values = set(table[found]) if found else set()
    if unknown := sorted(values.difference(splits_named(values))):
        listed = ", ".join(f"'{text}'" for text in unknown[:5])
        if name is None and len(unknown) == len(values):  # it is about something else
            notes.append(f"warning: column '{found}' of {labels.name} isn't used: {listed} are not splits")
            return None
        raise UserError(f"column '{found}' of {labels} has {listed}: expected the splits {', '.join(SPLITS)}")
    return found


def _label_column(table: pd.DataFrame, used: set[str | None], labels: Path, name: str | None) -> str | None:
    """The column with the classes. None if there is no column left."""
    others = [column for column in table.columns if column not in used]
    usual = [column for column in others if column.lower() in LABEL_NAMES]
    others = [column for column in others if _may_be_label(column)]
    named = [column for column in others if not column.startswith(NAMELESS)]
    found = [_chosen(table, labels, name, "label_column")] if name else usual or named or others
    if len(found) > 1:
        what = f"may have the labels in {' or '.join(found[:5])}{', ...' * (len(found) > 5)}"
        raise unclear(labels, what, table.columns, "label_column")
    if found and len(table) > 20 and table[found[0]].nunique() > len(table) / 2:
        raise UserError(
            f"column '{found[0]}' of {labels} has {table[found[0]].nunique():,} different labels for {len(table):,} "
            f"images, too many for classes: choose another one with --set data.label_column=NAME, or add --unlabelled"
        )
    return found[0] if found else None


def _may_be_label(column: str) -> bool:
    return column.lower() not in {*GROUP_NAMES, *SPLIT_COLUMNS}


def _one_for_each_class(table: pd.DataFrame, used: set[str | None]) -> pd.DataFrame | None:
    """The columns for the classes, with a single 1 in each row and else 0. None if a table has no such columns.

    They are not taken as classes if there is a column of texts, which may contain the classes, or if they are named
    like splits.
    """
    others = [column for column in table.columns if column not in used]
    if any(column.lower() in LABEL_NAMES for column in others):
        return None
    others = [column for column in others if _may_be_label(column) and not column.startswith(NAMELESS)]
    values = {column: table[column].str.lower().map(MARKS) for column in others}
    marks = pd.DataFrame({column: own for column, own in values.items() if own.notna().all()})
    rest = (table[column] for column in others if column not in marks)
    texts = any((pd.to_numeric(column, errors="coerce").isna() & (column != "")).any() for column in rest)
    if texts or splits_named(marks.columns):
        return None
    return marks if marks.shape[1] > 1 and (marks.sum(axis=1) == 1).all() else None


def _without_repeated(rows: pd.DataFrame, texts: pd.Series, labels: Path, notes: list[str]) -> pd.DataFrame:
    """The rows, each once. Raises UserError for a file in two rows that differ."""
    rows = rows.assign(text=texts)
    once = rows.drop_duplicates()
    if len(repeated := once[once["file"].duplicated(keep=False)]):
        first = repeated[repeated["file"] == repeated["file"].iloc[0]].iloc[:2]
        (one, other) = (", ".join(filter(None, [row.text, row.label, row.split])) for row in first.itertuples())
        raise UserError(
            f"{labels} has different rows for one image, {repeated['file'].nunique():,} in all: ({one}) and ({other}). "
            f"Keep one row for each image"
        )
    if len(once) < len(rows):
        notes.append(f"{len(rows) - len(once):,} rows of {labels.name} repeat others")
    return once
