"""Records as real runs write them: a Chinese entity tagger, a word segmenter, a review classifier, an ablation."""

import math
import random
from typing import Any

MACHINE = {
    "cpu": "Intel Xeon Platinum 8481C",
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0+cpu",
    "precision": "bf16 autocast",
    "python": "3.11.2",
}


def spans(text: str, *found: tuple[str, str]) -> list[list[Any]]:
    """[start, end, type] of each named substring, first occurrence."""
    return [[text.index(part), text.index(part) + len(part), kind] for part, kind in found]


def words(text: str) -> list[list[Any]]:
    """[start, end, ""] of each word of a text with blanks between words, offsets without the blanks."""
    out, at = [], 0
    for word in text.split():
        out.append([at, at + len(word), ""])
        at += len(word)
    return out


def log(seed: int, steps: int, evaluations: int) -> list[dict[str, Any]]:
    """A plausible log: loss falls, F1 rises and sags a little at the end."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        t = step / steps
        rows.append(
            {
                "step": step,
                "epoch": round(5 * t, 2),
                "loss": 34 * math.exp(-9 * t) + 1.9 * math.exp(-1.4 * t) + rng.gauss(0, 0.18) * (1 - 0.5 * t),
                "lr": 1e-3 * min(step / 120, 1 - 0.95 * t),
                "seconds": 0.11 * step,
            }
        )
        if step % (steps // evaluations) == 0:
            f1 = 0.742 - 0.47 * math.exp(-6 * t) - 0.012 * max(0, t - 0.75) + rng.gauss(0, 0.003)
            dev = {
                "f1": f1,
                "precision": f1 + 0.012,
                "recall": f1 - 0.011,
                "loss": 2.4 + 14 * math.exp(-8 * t) + 0.7 * t,
            }
            rows.append({"step": step, "epoch": round(5 * t, 2), "dev": dev})
    return rows


def transitions() -> dict[str, Any]:
    """A BIO scheme of four types with its forbidden steps."""
    labels = ["O"] + [f"{p}-{t}" for t in ("PER", "LOC", "ORG", "GPE") for p in "BI"]
    rng = random.Random(3)
    illegal = [[b.startswith("I-") and a[2:] != b[2:] for b in labels] for a in labels]
    matrix = []
    for i, a in enumerate(labels):
        row = []
        for j, b in enumerate(labels):
            score = 2.1 if b.startswith("I-") and a[2:] == b[2:] else 0.9 if a == b == "O" else -0.4
            row.append(-10000.0 if illegal[i][j] and j % 4 == 2 else score - 3.5 * illegal[i][j] + rng.gauss(0, 0.45))
        matrix.append(row)
    return {"labels": labels, "matrix": matrix, "illegal": illegal}


def tagger() -> dict[str, Any]:
    a = "据新华社报道，哈尔滨工业大学校长周玉日前率团访问了莫斯科鲍曼国立技术大学。"
    b = "王小波的《黄金时代》由花城出版社在广州再版，李银河为新版作序。"
    c = "昨天晚上在朝阳公园碰到了赵薇，她跟华谊的王中军一起遛狗😂😂"
    d = "欧盟委员会发言人约翰内斯·拜尔在布鲁塞尔表示，法德两国的分歧不会影响今年的预算谈判。"
    e = "深圳市腾讯计算机系统有限公司今日宣布任命刘炽平为总裁，马化腾继续担任董事会主席。"
    by_type = {
        "PER": {"precision": 0.8127, "recall": 0.7954, "f1": 0.8040, "support": 1203},
        "GPE": {"precision": 0.7731, "recall": 0.7609, "f1": 0.7670, "support": 640},
        "ORG": {"precision": 0.6518, "recall": 0.6120, "f1": 0.6313, "support": 384},
        "LOC": {"precision": 0.5102, "recall": 0.4545, "f1": 0.4808, "support": 110},
    }
    return {
        "kind": "train",
        "title": "Named entities in Weibo posts: gated convolutions with a CRF",
        "command": "danlu train tag --train weibo/train.conll --dev weibo/dev.conll --test weibo/test.conll "
        "--model dgcnn:6x128 --with fgm:0.5,ema,crf_lr:100 --set epochs=5 lr=0.001 --seed 7 --out runs/weibo-ner",
        "task": "tag",
        "created": "2026-11-21 14:03 UTC",
        "danlu": "0.1.0",
        "machine": MACHINE,
        "settings": {
            "model": "dgcnn:6x128",
            "with": ["fgm:0.5", "ema", "crf_lr:100"],
            "epochs": 5,
            "lr": 0.001,
            "batch_size": 32,
            "seed": 7,
            "max_len": 256,
            "weight_decay": 0.01,
            "schedule": {"warmup": 120, "shape": "linear"},
            "scheme": "BIO",
        },
        "data": [
            {"role": "train", "name": "weibo/train.conll", "examples": 1350, "tokens": 73778, "skipped": 0},
            {"role": "dev", "name": "weibo/dev.conll", "examples": 270, "tokens": 14509, "skipped": 2},
            {"role": "test", "name": "weibo/test.conll", "examples": 270, "tokens": 14844, "skipped": 0},
        ],
        "parameters": 2483112,
        "metrics": {
            "dev": {
                "f1": 0.7391,
                "precision": 0.7502,
                "recall": 0.7283,
                "accuracy": 0.9713,
                "loss": 2.8167,
                "ece": 0.0312,
                "macro_f1": 0.6708,
            },
            "test": {
                "f1": 0.7284,
                "precision": 0.7433,
                "recall": 0.7141,
                "accuracy": 0.9688,
                "loss": 3.0121,
                "ece": 0.0347,
                "macro_f1": 0.6570,
                "by_type": by_type,
            },
        },
        "log": log(1, 2100, 15),
        "transitions": transitions(),
        "confusion": {
            "labels": ["O", "PER", "GPE", "ORG", "LOC"],
            "matrix": [
                [12007, 96, 41, 58, 22],
                [151, 957, 9, 14, 2],
                [60, 11, 487, 25, 6],
                [83, 12, 31, 235, 9],
                [34, 3, 14, 8, 50],
            ],
        },
        "calibration": {
            "bins": [
                {"confidence": c / 10 - 0.05, "accuracy": min(1.0, c / 10 - 0.09 + 0.006 * c), "count": n}
                for c, n in zip(range(4, 11), (41, 96, 157, 201, 388, 1210, 12751), strict=True)
            ],
            "ece": 0.0347,
        },
        "worst": [
            {
                "text": a,
                "gold": spans(
                    a, ("新华社", "ORG"), ("哈尔滨工业大学", "ORG"), ("周玉", "PER"), ("莫斯科鲍曼国立技术大学", "ORG")
                ),
                "pred": spans(
                    a, ("新华社", "ORG"), ("哈尔滨", "GPE"), ("工业大学", "ORG"), ("周玉日", "PER"), ("莫斯科", "GPE")
                ),
                "loss": 21.4402,
            },
            {
                "text": d,
                "gold": spans(
                    d,
                    ("欧盟委员会", "ORG"),
                    ("约翰内斯·拜尔", "PER"),
                    ("布鲁塞尔", "GPE"),
                    ("法", "GPE"),
                    ("德", "GPE"),
                ),
                "pred": spans(d, ("欧盟委员会", "ORG"), ("约翰内斯", "PER"), ("拜尔", "PER"), ("布鲁塞尔", "LOC")),
                "loss": 18.9077,
            },
            {
                "text": c,
                "gold": spans(c, ("朝阳公园", "LOC"), ("赵薇", "PER"), ("华谊", "ORG"), ("王中军", "PER")),
                "pred": spans(c, ("朝阳公园", "LOC"), ("赵薇", "PER"), ("王中军", "PER"), ("晚上", "PER")),
                "loss": 12.6610,
            },
            {
                "text": b,
                "gold": spans(b, ("王小波", "PER"), ("花城出版社", "ORG"), ("广州", "GPE"), ("李银河", "PER")),
                "pred": spans(
                    b, ("王小波", "PER"), ("花城出版社", "ORG"), ("广州", "LOC"), ("李银河", "PER"), ("黄金时代", "ORG")
                ),
                "loss": 9.3155,
            },
            {
                "text": e,
                "gold": spans(e, ("深圳市腾讯计算机系统有限公司", "ORG"), ("刘炽平", "PER"), ("马化腾", "PER")),
                "pred": spans(e, ("深圳市", "GPE"), ("腾讯计算机系统有限公司", "ORG"), ("马化腾", "PER")),
                "loss": 8.0214,
            },
            {
                "text": "New York City 的 Dr. Smith <script>document.title='hacked'</script> 说了什么？",
                "gold": [[0, 13, "GPE"], [20, 25, "PER"]],
                "pred": [[0, 8, "GPE"], [20, 25, "PER"]],
                "loss": 6.5,
            },
        ],
        "seconds": {"train": 231.4, "evaluate": 6.2, "total": 243.9},
    }


def segmenter() -> dict[str, Any]:
    pairs = [
        ("北京大学 生 活动 中心 前 的 研究生 命 科学 的 教授", "北京大学生 活动 中心 前 的 研究 生命科学 的 教授"),
        (
            "在 建设 有 中国 特色 社会主义 的 伟大 事业 中 ， 我们 取得 了 举世 瞩目 的 成就 。",
            "在 建设 有 中国 特色 社会主义 的 伟大 事业 中 ， 我们 取得 了 举世瞩目 的 成就 。",
        ),
        (
            "乒乓球 拍卖 完 了 ， 南京市 长江 大桥 上 人山人海 。",
            "乒乓球拍 卖 完 了 ， 南京 市长 江大桥 上 人山人海 。",
        ),
    ]
    record = tagger()
    record.update(
        title="People's Daily 1998: word segmentation",
        worst=[
            {"text": gold.replace(" ", ""), "gold": words(gold), "pred": words(pred), "loss": 9.5 - i}
            for i, (gold, pred) in enumerate(pairs)
        ],
    )
    for key in ("confusion", "calibration"):
        record.pop(key)
    record["metrics"] = {"test": {"f1": 0.9468, "precision": 0.9481, "recall": 0.9455, "loss": 1.8}}
    labels = ["B", "M", "E", "S"]
    ok = {("B", "M"), ("B", "E"), ("M", "M"), ("M", "E"), ("E", "B"), ("E", "S"), ("S", "B"), ("S", "S")}
    record["transitions"] = {
        "labels": labels,
        "matrix": [
            [0.62, -0.31, 1.4, -4.2],
            [-3.9, 0.88, 0.71, -4.4],
            [0.52, -4.8, -5.1, 0.43],
            [0.37, -3.3, -3.6, 0.49],
        ],
        "illegal": [[(a, b) not in ok for b in labels] for a in labels],
    }
    return record


def classifier() -> dict[str, Any]:
    labels = ["体育", "财经", "科技", "娱乐", "教育"]
    return {
        "kind": "train",
        "title": "新闻标题分类",
        "command": "danlu train classify --train news.tsv --dev dev.tsv",
        "task": "classify",
        "metrics": {
            "dev": {
                "accuracy": 0.9021,
                "macro_f1": 0.8987,
                "loss": 0.3312,
                "by_type": {
                    x: {
                        "precision": 0.9 + i / 100,
                        "recall": 0.91 - i / 50,
                        "f1": 0.905 - i / 100,
                        "support": 400 - 31 * i,
                    }
                    for i, x in enumerate(labels)
                },
            }
        },
        "log": log(5, 600, 4),
        "confusion": {
            "labels": labels,
            "matrix": [[371 if i == j else (i * 7 + j * 3) % 11 for j in range(5)] for i in range(5)],
        },
        "worst": [
            {"text": "国足主帅谈薪资：钱不是问题，问题是没钱", "gold": "体育", "pred": "财经", "confidence": 0.9871},
            {
                "text": "The Economics of Football: why clubs go bankrupt",
                "gold": "财经",
                "pred": "体育",
                "confidence": 0.9512,
            },
            {"text": "院士进课堂 “量子” 到底纠缠了谁", "gold": "教育", "pred": "科技", "confidence": 0.9233},
        ],
        "seconds": {"train": 41.2, "total": 44.0},
    }


def ablation() -> dict[str, Any]:
    seeds = [11, 12, 13, 14, 15]
    base = [0.7121, 0.7188, 0.7064, 0.7150, 0.7097]
    plans = [
        ("baseline", [], [0.0] * 5, 41.3, 812, None),
        (
            "fgm:0.5",
            ["fgm:0.5"],
            [0.0112, 0.0081, 0.0135, 0.0098, 0.0121],
            70.1,
            853,
            (0.0061, 0.0158, 0.0004, 0.0016, "helps"),
        ),
        (
            "ema",
            ["ema"],
            [0.0031, 0.0012, 0.0054, 0.0008, 0.0040],
            42.0,
            831,
            (-0.0012, 0.0070, 0.1214, 0.2428, "no evidence"),
        ),
        (
            "crf_lr:100",
            ["crf_lr:100"],
            [0.0051, -0.0023, 0.0062, 0.0011, -0.0018],
            41.5,
            812,
            (-0.0045, 0.0078, 0.4871, 0.4871, "no evidence"),
        ),
        (
            "noise:0.5",
            ["noise:0.5"],
            [-0.0101, -0.0055, -0.0092, -0.0071, -0.0086],
            44.8,
            815,
            (-0.0127, -0.0035, 0.0063, 0.0189, "hurts"),
        ),
        (
            "all",
            ["fgm:0.5", "ema", "crf_lr:100", "noise:0.5"],
            [0.0093, 0.0032, 0.0127, 0.0054, 0.0109],
            74.2,
            871,
            (0.0017, 0.0149, 0.0151, 0.0302, "helps"),
        ),
    ]
    arms = []
    for name, tricks, gains, seconds, memory, test in plans:
        values = [round(b + g, 4) for b, g in zip(base, gains, strict=True)]
        mean = sum(values) / 5
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / 4)
        low, high, p, holm, verdict = test or (None,) * 5
        difference = (
            {"mean": sum(gains) / 5, "low": low, "high": high, "p": p, "p_holm": holm, "verdict": verdict}
            if test
            else None
        )
        scores = [
            {"seed": s, "value": v, "seconds": seconds + s % 3, "memory_mb": memory}
            for s, v in zip(seeds, values, strict=True)
        ]
        arms.append(
            {
                "name": name,
                "with": tricks,
                "scores": scores,
                "mean": mean,
                "std": std,
                "seconds": seconds,
                "memory_mb": memory,
                "difference": difference,
            }
        )
    return {
        "kind": "ablation",
        "title": "Which tricks help a Weibo entity tagger?",
        "command": "danlu ablate tag --train weibo/train.conll --dev weibo/dev.conll --test weibo/test.conll "
        "--model dgcnn:6x128 --with fgm:0.5,ema,crf_lr:100,noise:0.5 --seeds 5 --jobs 2 --out runs/weibo-ablation",
        "task": "tag",
        "metric": "f1",
        "seeds": seeds,
        "examples": 270,
        "evaluated_on": "test (weibo/test.conll)",
        "arms": arms,
        "data": tagger()["data"],
        "machine": MACHINE,
        "settings": {"model": "dgcnn:6x128", "epochs": 5, "lr": 0.001, "batch_size": 32, "jobs": 2, "engine": "local"},
        "created": "2026-11-21 15:20 UTC",
        "danlu": "0.1.0",
        "seconds": {"total": 812.7},
        "notes": ["noise:0.5 moves the embeddings as far as fgm:0.5 does, in a random direction: the control for fgm."],
    }
