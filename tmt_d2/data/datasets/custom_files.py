"""The files of a user's own data set: what its patterns and lists find on disk, paired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tmt_d2.data.datasets.label_spaces import LabelSpace
from tmt_d2.data.datasets.layouts import Listing, find, pair
from tmt_d2.data.image_lists import ImageNames, shown
from tmt_d2.data.reader import DataError
from tmt_d2.errors import UserError

PATTERN_KEYS = ("images", "labels", "unlabeled")


@dataclass(frozen=True)
class CustomSplit:
    """What the YAML file says of one split.

    Attributes:
        patterns: by key of ``PATTERN_KEYS``, below the data set's root; images and labels, or unlabeled, or all three.
        list_file: names the images of the split.
        subset: images without a label, and names of `list_file` without an image, are no error.
    """

    patterns: Mapping[str, tuple[str, ...]]
    list_file: Path | None = None
    subset: bool = False


@dataclass(frozen=True)
class CustomDataSet:
    """What one YAML file says.

    Attributes:
        file: the YAML file, absolute.
        root: the folder in which patterns look, absolute, symbolic links resolved; links below it lead anywhere.
    """

    file: Path
    name: str
    root: Path
    splits: Mapping[str, CustomSplit]
    label_space: LabelSpace

    def listing(self, split: str) -> Listing:
        """Pair the files of one split.

        Raises:
            FileNotFoundError: nothing matches a pattern, or the list of the split is not there.
            DataError: two files have the same name, or the list names what is not there.
        """
        wanted = self.splits[split]
        files = {key: self._find(split, key, patterns) for key, patterns in wanted.patterns.items()}
        absent: list[str] = []
        if wanted.list_file is not None:
            key = "images" if "images" in files else "unlabeled"
            files[key], absent = self._listed(split, key, files[key], wanted.list_file)
            if key == "images":
                files["labels"] = {stem: path for stem, path in files["labels"].items() if stem in files["images"]}
        listing = pair(files.get("images", {}), files.get("labels", {}))
        listing.absent, listing.subset = absent, wanted.subset
        unlabeled, labeled = files.get("unlabeled", {}), {image for image, _ in listing.pairs.values()}
        listing.unlabeled = {stem: path for stem, path in sorted(unlabeled.items()) if path not in labeled}
        for stem in listing.unlabeled.keys() & listing.pairs.keys():
            raise DataError(
                f"{self.file}: splits.{split}.unlabeled: {unlabeled[stem]} has the name {stem!r}, as the labeled "
                f"{listing.pairs[stem][0]}; capture the folder as well: {{folder}}/{{stem}}"
            )
        meant = set(unlabeled.values())
        listing.images_alone = [path for path in listing.images_alone if path not in meant]
        return listing

    def _find(self, split: str, key: str, patterns: Iterable[str]) -> dict[str, str]:
        """stem -> path, of all patterns together."""
        found: dict[str, str] = {}
        for pattern in patterns:
            files = find(self.root, pattern)
            if not files:
                raise FileNotFoundError(f"{self.file}: splits.{split}.{key}: no file like {self.root}/{pattern}")
            for stem in sorted(files.keys() & found.keys()):
                if files[stem] != found[stem]:
                    raise DataError(
                        f"{self.file}: splits.{split}.{key}: {found[stem]} and {files[stem]} both have the name "
                        f"{stem!r}; capture the folder as well: {{folder}}/{{stem}}"
                    )
            found |= files
        return found

    def _listed(
        self, split: str, key: str, files: Mapping[str, str], list_file: Path
    ) -> tuple[dict[str, str], list[str]]:
        """The files that the list names, and the names that none of them has."""
        where = f"{self.file}: splits.{split}.list: {list_file}"
        if not list_file.is_file():
            raise FileNotFoundError(f"{where}: no such file (the names of the split's images)")
        stems = list(files)
        names = ImageNames([files[stem] for stem in stems], [[stem] for stem in stems], [self.root])
        try:
            found = names.find(f"{self.file}: splits.{split}.list:", list_file)
        except UserError as error:
            raise DataError(str(error)) from error
        unknown = [name for name, places in found.items() if not places]
        several = [name for name, places in found.items() if len(places) > 1]
        if several:
            raise DataError(f"{where}: {len(several)} names are of several images: {shown(several)}; write paths")
        if len(unknown) == len(found) or (unknown and not self.splits[split].subset):
            what = f"names {len(unknown)} of {len(found)} that {key} does not have: {shown(unknown)}"
            raise DataError(f"{where}: {what}; write stems such as {stems[0]}, or paths below {self.root}")
        kept = {stems[index] for places in found.values() for index in places}
        return {stem: path for stem, path in files.items() if stem in kept}, unknown
