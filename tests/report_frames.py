"""Small tables with the columns that the package's measures have, and hostile texts in them."""

import numpy as np
import pandas as pd

HOSTILE = "<script>alert('x')</script> \"&\" $x$ \x07 \u202e ホームズ\n\tशनि"
TOKENS = ["<|bos|>", "The", " ring", "ed", " $p$", "\n", " ホームズ", " <b>", " is", " the"]
NAMES = ("Sherlock Holmes", "Saturn", "Paris", "Albert Einstein", '"><script>alert(1)</script>')


def _kl(**more):
    figures = {"median": 0.0003, "mean": 0.002, "p95": 0.005, "p99": 0.03, "max": 8.5}
    silence = {"unchanged": 0.0, "unchanged_from_silenced": 0.99999, "hosts_kl_mean": 0.00012}
    return {"tokens": 25_600, **figures, **silence, **more}


def _concept(name, forward_max=0.001, reverse=0.1):
    known = {"n": 8, "known": 7, "said_before": 6, "said_after": 0}
    forward = {"before_mean": 0.4, "after_mean": 0.0004, "after_max": forward_max}
    forward["erased"] = 1.0 if forward_max <= 0.005 else 6 / 7
    worst = {"worst": "<b>Jupiter</b>", "worst_kept": 0.8}
    return {
        "name": name,
        "edits": [{"layer": 2, "role": "out", "neuron": 5, "cosine": None}],
        "probes": {
            "forward": {**known, **forward},
            "reverse": {**known, "kept": reverse, "said_substitute": 2, "said_after_own": 0},
            "neighbour": {**known, "kept": 0.98, **worst},
            "multilingual": {**known, "n": 6, "known": 2, "kept": 0.01, "worst": "土星"},
        },
        "seconds": 3.0,
    }


def a_report(names=NAMES):
    model = {"name": "<i>model</i>", "sha256": "ab" * 32, "layers": 30, "d_model": 576}
    return {
        "schema": 1,
        "model": {**model, "d_mlp": 1536},
        "method": {"name": "tars", "seed": 0, "goal": 0.001, "versions": {"torch": "2.13.0"}},
        "concepts": [_concept(name) for name in names],
        "kl": _kl(corpus="wikipedia-en-sample", elsewhere=_kl()),
        "verified": {
            "rows_changed": 9,
            "rows_planned": 9,
            "others_identical": True,
            "restored_identical": True,
        },
        "cost": {"seconds": 12.0, "peak_rss_bytes": 2e9},
    }


def probes(concepts=("Sherlock Holmes", "Saturn")):
    generator = np.random.default_rng(0)
    rows = []
    for concept in concepts:
        for kind, count in (("forward", 7), ("reverse", 5), ("neighbour", 5), ("multilingual", 8)):
            for index in range(count):
                p = float(generator.uniform(0.02, 0.98))
                after = p * (0.97 if kind == "neighbour" else 0.002 * index)
                text = f"{kind} {index}: a text about the thing that is the largest moon of"
                rows.append(
                    {
                        "concept": concept,
                        "kind": kind,
                        "language": ("fr", "de", "ja", "hi")[index % 4]
                        if kind == "multilingual"
                        else "",
                        "prompt": HOSTILE if index == 1 else text,
                        "answer": concept,
                        "p_before": p,
                        "known": p >= 0.1,
                        "floor": 0.0,
                        "set_phrase": False,
                        "p_after": after,
                        "kept": after / p,
                        "top_before": p >= 0.5,
                        "top_after": after >= 0.5,
                        "top_substitute": False,
                    }
                )
    return pd.DataFrame(rows)


def language_depths(concepts=("Paris",), layers=18):
    rows = [
        (concept, language, HOSTILE if language == "zh" else f"{language}:", answer, word, layer)
        + (0.9 * (layer > 11), 0.0)
        for concept in concepts
        for language, answer in (("it", "Parigi"), ("zh", "巴黎"), ("fr", "<b>$Paris"))
        for word in ("english", "own")
        for layer in range(-1, layers)
    ]
    columns = ["concept", "language", "prompt", "answer", "word", "layer", "p_before", "p_after"]
    return pd.DataFrame(rows, columns=columns)


def neurons_used(concepts=("Sherlock Holmes", "Saturn")):
    frame = edits(concepts)[["concept", "layer", "neuron", "role", "cosine"]]
    frame["kind"], frame["reads_or_writes"] = "suppression", "reads"
    tokens = {"new_tokens": HOSTILE, "reversed_tokens": "' Saturn'", "old_tokens": "<b>' a'"}
    return frame.assign(**tokens)


def parts(concepts=("Sherlock Holmes", "Saturn")):
    heard = {"threshold": -7.6, "own_prompts": -1.2, "own_least": -3.4, "near_most": np.nan}
    heard |= {"plain_p99": -9.8, "speaks": 0.004, "strength": 120.0}
    rows = [
        {"concept": concept, "kind": kind, "layer": 29, "neuron": 5, "unit": "nats", **heard}
        for concept in concepts
        for kind in ("name", "suppression")
    ]
    return pd.DataFrame(rows).assign(why=HOSTILE)


def propagation(layers=30, prompts=1):
    rows = []
    for prompt in range(prompts):
        for position, token in enumerate(TOKENS):
            for layer in range(-1, layers):
                late = max(0.0, (layer - 18) / (layers - 19)) * (position / len(TOKENS)) ** 2
                before, after = late, late * 0.02 + (0.03 if layer == 3 else 0)
                rows.append(
                    {
                        "prompt": prompt,
                        "text": "".join(TOKENS),
                        "position": position,
                        "token": token,
                        "layer": layer,
                        "p_before": before,
                        "p_after": after,
                        "difference": after - before,
                        "rank_before": 1 if before > 0.5 else 40,
                        "rank_after": 40,
                        "cosine_before": before / 2,
                        "cosine_after": after / 2,
                    }
                )
    return pd.DataFrame(rows)


def summary():
    return pd.DataFrame(
        {
            "prompt": [0],
            "text": ["".join(TOKENS)],
            "first_top_layer": [25],
            "largest_before": [0.81],
            "stopped_layer": [29.0],
            "largest_after": [0.016],
        }
    )


def attribution(layers=30):
    generator = np.random.default_rng(1)
    rows = [("embedding", -1, -1, "embedding")]
    rows += [("attention", layer, -1, f"attention {layer}") for layer in range(layers)]
    rows += [
        ("head", layer, head, f"L{layer}H{head}") for layer in range(layers) for head in (0, 1)
    ]
    rows += [("mlp", layer, -1, f"MLP {layer}") for layer in range(layers)]
    rows += [("bias", layer, -1, f"bias {layer}") for layer in (3, layers)]
    frame = pd.DataFrame(rows, columns=["component", "layer", "index", "label"])
    frame.insert(0, "text", "".join(TOKENS))
    frame.insert(0, "prompt", 0)
    frame["logit_before"] = generator.normal(0.2, 0.5, len(frame))
    frame["logit_after"] = frame["logit_before"] + generator.normal(0, 0.02, len(frame))
    frame.loc[frame["label"] == f"MLP {layers - 1}", "logit_after"] -= 14.0
    return frame


def effects():
    rows = []
    for label, layer, strengths in (
        ("L2N509", 2, {"forward": 0.01, "reverse": 0.2, "neighbour": 0.001}),
        ("L5N1120", 5, {"forward": 0.0, "reverse": 0.12, "neighbour": 0.002}),
        ("L29N990", 29, {"forward": 0.24, "reverse": 0.005, "neighbour": 0.004}),
    ):
        for kind, size in strengths.items():
            base, edited = 0.4, 0.4 - sum((0.02, 0.2))
            for mode, p, from_p in (
                ("alone", base - size, base),
                ("left_out", edited + size, edited),
            ):
                rows.append((layer, int(label.split("N")[1]), label, "neuron", mode, kind, base))
                rows[-1] += (edited, p, abs(p - from_p))
    columns = ["layer", "neuron", "label", "role", "mode", "kind", "p_base", "p_all", "p", "effect"]
    return pd.DataFrame(rows, columns=columns)


def edits(concepts=("sherlock_holmes", "saturn")):
    generator = np.random.default_rng(2)
    rows = [
        {
            "concept": concept,
            "layer": layer,
            "role": role,
            "neuron": 100 + layer + index,
            "label": f"L{layer}N{100 + layer + index}",
            "cosine": float(generator.normal(0, 0.1)),
            "old_norm": 4.0,
            "new_norm": 20.0,
            "angle_degrees": 91.5,
        }
        for index, concept in enumerate(concepts)
        for layer in (2, 5, 29)
        for role in ("gate", "in", "out")
    ]
    return pd.DataFrame(rows)


def kl():
    return pd.Series(np.random.default_rng(3).lognormal(-8.3, 1.7, 25_600))


def silence():
    kl = np.geomspace(1e-12, 1e-2, 40)
    return pd.DataFrame({"kl": kl, "bound": 30 * kl**0.9})


def growth(concepts=("Saturn", "Sherlock $x$", "Paris", "Einstein", "oxygen")):
    names = ("median", "mean", "p95", "p99", "max")
    rows = [
        {"removed": n, "concept": concept, "text": text, "tokens": 25_600 - 512 * n * elsewhere}
        | {name: 0.0 if n == 1 and k == 0 else 1e-4 * n * 10**k for k, name in enumerate(names)}
        for n, concept in enumerate(concepts, start=1)
        for elsewhere, text in enumerate(("all", "elsewhere"))
    ]
    return pd.DataFrame(rows)


def interference(concepts=("Saturn", "Sherlock Holmes", "Paris", "Einstein", "oxygen")):
    generator = np.random.default_rng(4)
    rows = [
        {
            "edited": a,
            "concept": b,
            "forward_after": 0.0 if a == b else float(generator.uniform(0.3, 0.95)),
            "reverse_kept": np.nan if b == "oxygen" else float(generator.uniform(0.05, 1)),
        }
        for a in concepts
        for b in concepts
    ]
    return pd.DataFrame(rows)


def depth(concepts=("Sherlock Holmes", "Saturn")):
    rows = [
        (concept, HOSTILE if i == 1 else f"prompt {i} that asks for the", 0.2 * i, 0.01 * i, 24, 25)
        for concept in concepts
        for i in range(1, 5)
    ]
    columns = [
        "concept",
        "prompt",
        "largest_before",
        "largest_after",
        "layer_before",
        "layer_after",
    ]
    return pd.DataFrame(rows, columns=columns)


def curve(concepts=("Saturn", "Paris", "oxygen")):
    rows = [
        (concept, n, 0.7 * 0.5 ** (n * (1 + i)), 1 - 0.004 * n, 1e-5 * 3**i * n)
        for i, concept in enumerate(concepts)
        for n in range(0, 10)
    ]
    columns = ["concept", "edits", "forward_worst", "neighbours_kept", "plain_kl"]
    return pd.DataFrame(rows, columns=columns)


def trajectory(concepts=("Saturn", "Sherlock Holmes")):
    rows = [
        (concept, step, 1 - 0.9 * 0.7 ** (step * (i + 1)), 0.99**step, 2.5 * step**0.5 * (i + 1))
        for i, concept in enumerate(concepts)
        for step in range(25)
    ]
    columns = ["concept", "step", "probability", "cosine", "angle_degrees"]
    return pd.DataFrame(rows, columns=columns)


def cosines():
    from tars_lens.report.figures import cosine_frame

    generator = np.random.default_rng(5)
    ranked = pd.DataFrame({"cosine": generator.standard_t(6, 90_000) * 0.05})
    chance = np.sort(generator.normal(0, 1 / 24, 90_000))
    levels = [0.5, 0.9, 0.99, 0.999, 0.9999]
    null = pd.DataFrame({"quantile": levels, "cosine": np.quantile(chance, levels)})
    return cosine_frame(ranked, null, source="Saturn")
