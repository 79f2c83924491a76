"""Text metrics are the libraries' own, their correlation with the verdicts is scipy's, and hostile texts stay texts."""

import json
import sys
import types

import numpy as np
import pytest

from eval import text_metrics
from eval.runs import sha256_json

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")


def make_run(folder, rows, variant="imagechain"):
    """Write a run; `rows` are (reference, prediction, verdict or None)."""
    folder.mkdir(parents=True)
    with (folder / "predictions.jsonl").open("w") as predictions, (folder / "judgments.jsonl").open("w") as judgments:
        for i, (reference, prediction, verdict) in enumerate(rows):
            texts = {"reference": reference, "prediction": prediction}
            row = {"id": f"s{i}", "variant": variant, "num_scenes": 2, "video_name": f"v{i}", **texts}
            predictions.write(json.dumps(row) + "\n")
            if verdict:
                pair = sha256_json([reference, prediction])
                judgment = {"id": f"s{i}", "verdict": verdict, "parsed": True, "judge": "mock", "pair_sha256": pair}
                judgments.write(json.dumps(judgment) + "\n")
    return folder


ROWS = [
    ("A man kicks the red ball.", "A man kicks the red ball.", "yes"),
    ("A woman sits on the box.", "A woman is sitting on the box.", "yes"),
    ("A boy jumps over the drum.", "The girl reads a book.", "no"),
    ("A dog runs in the snow.", "A dog runs on the beach.", "no"),
    ("The girl lifts a pillow.", "The girl lifts a pillow.", None),
]


def measured(tmp_path, *runs, extra=()):
    status = text_metrics.main(["--runs", *map(str, runs), "--output-dir", str(tmp_path / "out"), *extra])
    path = tmp_path / "out" / "text_metrics.json"
    return status, json.loads(path.read_text()) if path.is_file() else None


def test_scores_are_the_libraries_own(tmp_path):
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    status, found = measured(tmp_path, make_run(tmp_path / "run", ROWS))
    references, predictions, _ = zip(*ROWS, strict=True)
    scores = {name: made["score"] for name, made in found["runs"][0]["metrics"].items()}
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(r, p)["rougeL"].fmeasure for r, p in zip(references, predictions, strict=True)]
    assert status == 0
    assert scores["BLEU"] == pytest.approx(sacrebleu.corpus_bleu(predictions, [references]).score)
    assert scores["chrF"] == pytest.approx(sacrebleu.corpus_chrf(predictions, [references]).score)
    assert scores["ROUGE-L"] == pytest.approx(100 * np.mean(rouge))
    assert found["signatures"]["BLEU"].startswith(
        f"BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    )


def test_correlation_is_scipys_point_biserial_over_the_judged_rows(tmp_path):
    import sacrebleu
    from scipy.stats import pointbiserialr

    _, found = measured(tmp_path, make_run(tmp_path / "run", ROWS))
    judged = [row for row in ROWS if row[2]]
    scores = [sacrebleu.sentence_chrf(prediction, [reference]).score for reference, prediction, _ in judged]
    theirs = pointbiserialr([verdict == "yes" for *_, verdict in judged], scores).statistic
    line = found["runs"][0]
    assert (line["n"], line["scored"], line["yes"]) == (5, 4, 2)
    assert line["metrics"]["chrF"]["correlation"]["value"] == pytest.approx(theirs)


@pytest.mark.parametrize("verdict", ["yes", "no", None])
def test_verdicts_that_are_all_the_same_give_no_correlation_but_a_reason(tmp_path, verdict, capsys):
    status, found = measured(tmp_path, make_run(tmp_path / "run", [(r, p, verdict) for r, p, _ in ROWS]))
    made = found["runs"][0]["metrics"]["BLEU"]
    assert status == 0 and made["correlation"]["value"] is None and made["score"] > 0
    assert (
        "all verdicts or all scores are the same" if verdict else "r is not defined: there is no row"
    ) in capsys.readouterr().out


def test_a_bound_just_below_zero_is_shown_without_a_sign():
    made = text_metrics.Estimate(value=0.1, low=-0.001, high=0.25)
    assert text_metrics._interval(made) == "0.00 to 0.25"


def test_several_runs_get_a_line_each_and_one_together(tmp_path):
    runs = [
        make_run(tmp_path / name, ROWS, variant)
        for name, variant in (("a", "mllm"), ("b", "imagechain"), ("c", "mllm"))
    ]
    _, found = measured(tmp_path, *runs)
    assert [line["run"] for line in found["runs"]] == [
        f"MLLM ({runs[0]})",
        "ImageChain",
        f"MLLM ({runs[2]})",
        "All runs together",
    ]
    assert found["runs"][-1]["n"] == 15


def test_what_makes_numbers_incomparable_is_said(tmp_path):
    runs = [make_run(tmp_path / "a", ROWS), make_run(tmp_path / "b", ROWS[:3], "mllm")]
    path = runs[1] / "judgments.jsonl"
    path.write_text(path.read_text().replace('"mock"', '"other"'))
    notes = " ".join(measured(tmp_path, *runs)[1]["notes"])
    assert "Verdicts by mock, other. The runs were judged by different judges" in notes
    assert "Unscored stories, run eval.simrate again: ImageChain 1 (s4)." in notes and "MLLM lacks 2" in notes


def test_hostile_and_empty_texts_are_scored_as_texts(tmp_path):
    evil = [
        ("=1+1", "=1+1", "yes"),
        ("<b>a</b>", "", "no"),
        ('"\n\t"', "\u202e |", "no"),
        ("犬が走る", "犬が走る", "yes"),
    ]
    status, found = measured(tmp_path, make_run(tmp_path / "run", evil, variant="=cmd|<script>"))
    assert status == 0 and all(np.isfinite(made["score"]) for made in found["runs"][0]["metrics"].values())
    assert "<script>" not in (tmp_path / "out" / "text_metrics.md").read_text()
    assert "\n'=cmd" in (tmp_path / "out" / "text_metrics.csv").read_text()


def test_a_missing_library_is_named_with_how_to_get_it(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", ROWS)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert measured(tmp_path, run, extra=["--embeddings", "any/model"])[0] == 2
    assert "setup.sh embeddings" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert measured(tmp_path, run)[0] == 2
    assert "setup.sh eval" in capsys.readouterr().err


def test_embeddings_are_cosines_and_the_model_is_loaded_from_safetensors_only(tmp_path, monkeypatch):
    asked = {}

    class Model:
        def __init__(self, name, device, model_kwargs):
            asked.update(name=name, device=device, **model_kwargs)

        def encode(self, texts, normalize_embeddings, **_):
            assert normalize_embeddings
            return np.array([[1.0, 0.0] if "A " in text else [0.6, 0.8] for text in texts])

    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = Model
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    monkeypatch.setattr(text_metrics.importlib.metadata, "version", lambda name: "0")
    _, found = measured(
        tmp_path, make_run(tmp_path / "run", ROWS), extra=["--embeddings", "some/model", "--device", "cpu"]
    )
    assert asked == {"name": "some/model", "device": "cpu", "use_safetensors": True}
    # the third prediction alone has another direction than its reference
    assert found["runs"][0]["metrics"]["Embedding"]["score"] == pytest.approx(100 * (4 + 0.6) / 5)


def test_a_tiny_model_of_the_real_library_runs(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["a", "man", "woman", "boy", "girl", "dog", "kicks", "sits", "jumps", "runs", "red", "ball", "."],
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    model = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(model).save_pretrained(tmp_path / "model")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "model")
    run = make_run(tmp_path / "run", ROWS)
    status, found = measured(tmp_path, run, extra=["--embeddings", str(tmp_path / "model"), "--device", "cpu"])
    assert status == 0 and library.__version__ in found["signatures"]["Embedding"]
    assert 0 < found["runs"][0]["metrics"]["Embedding"]["score"] <= 100


def test_a_run_given_twice_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run", ROWS)
    assert measured(tmp_path, run, tmp_path / "out" / ".." / "run")[0] == 2
    assert "each run once was wanted" in capsys.readouterr().err
