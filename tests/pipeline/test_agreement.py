"""Agreement, bias and text metrics by their real commands: a blind export, labels of two people, judges on a server."""

import csv
import http.server
import io
import json
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest
from PIL import Image

from eval.agreement.__main__ import main
from eval.judge_bias.__main__ import main as judge_bias_main
from llava.imagechain.files import sha256_json
from llava.imagechain.locks import only_one
from llava.imagechain.story import storyframes_features

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '=HYPERLINK("http://x","<b>click</b>");+1'
ACTORS = ("The man", "The woman")
THINGS = "lamp bench chair table spoon bottle basket ladder guitar wheel pillow helmet".split()  # noqa: SIM905
EXPORT = ("export", "--stories", "stories", "--output-dir", "out", "--runs", "runs/mllm", "runs/imagechain")


def run_script(name, *arguments, cwd, **settings):
    """Run scripts/eval/NAME.sh and return the finished process."""
    command = ["bash", str(ROOT / "scripts" / "eval" / f"{name}.sh"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **settings}, capture_output=True, text=True, timeout=900, check=False
    )


class Done:
    """What a command run in this process left behind."""

    def __init__(self, status, captured):
        self.returncode, self.stdout, self.stderr = status, captured.out, captured.err


@pytest.fixture
def agreement(work, monkeypatch, capsys):
    """Return a function that runs `eval.agreement` in this process, in the work folder."""
    monkeypatch.chdir(work)

    def run(*arguments):
        return Done(main([*map(str, arguments)]), capsys.readouterr())

    return run


@pytest.fixture
def judge_bias(work, monkeypatch, capsys):
    """Return a function that runs `eval.judge_bias` in this process, in the work folder."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))

    def run(*arguments):
        words = ["--stories", "stories", "--output-dir", "bias", *map(str, arguments)]
        return Done(judge_bias_main(words), capsys.readouterr())

    return run


@pytest.fixture
def exported(agreement):
    assert agreement(*EXPORT, "--num", "100").returncode == 0


def reference(i):
    return f"{ACTORS[i % 2]} is lifting {THINGS[i]} {i}." if i else HOSTILE


def picture(i):
    data = io.BytesIO()
    Image.new("RGB", (80, 60), (10 * i, 255 - 10 * i, 100)).save(data, "JPEG", exif=b"Exif\x00\x00secret")
    return {"bytes": data.getvalue(), "path": None}


@pytest.fixture
def work(tmp_path):
    """Lay out `stories`, `runs/{mllm,imagechain}` and two judges' verdicts on imagechain."""
    import datasets

    rows = [
        {
            "sentence_parts": ["first", reference(i)], "start_times": [0.0, 1.0], "end_times": [1.0, 2.0],
            "background_description": "", "video_name": f"video {i // 2}", "question_info": "",
            "num_actors_in_video": 2, "caption": "", "sentence_parts_nocontext": ["", ""],
            "subsampled_frames_per_scene": [[0.1], [1.2, 1.4]], "story_id": f"s{i}",
            "scenes": [[picture(i)], [picture(i), picture(i + 1)]], "num_scenes": 2,
        }
        for i in range(12)
    ]  # fmt: skip
    rows[11]["scenes"][1][0] = {"bytes": b"no picture", "path": None}
    stories = datasets.Dataset.from_list(rows, features=storyframes_features())
    stories.save_to_disk(str(tmp_path / "stories" / "scene_2" / "val"))
    for variant, right in (("mllm", 3), ("imagechain", 9)):
        folder = tmp_path / "runs" / variant
        folder.mkdir(parents=True)
        predictions, judgments, other = [], [], []
        for i in range(12):
            texts = {"reference": reference(i), "prediction": reference(i) if i < right else f"{variant} text {i}"}
            predictions.append(
                {"id": f"s{i}", "variant": variant, "num_scenes": 2, "video_name": f"video {i // 2}", **texts}
            )
            pair = sha256_json([texts["reference"], texts["prediction"]])
            judgment = {"id": f"s{i}", "parsed": True, "answer": "a", "judge": "mock", "pair_sha256": pair}
            judgments.append({**judgment, "verdict": "yes" if i < right else "no"})
            other.append({**judgment, "verdict": "yes" if i % 2 else "no"})
        for name, made in (("predictions", predictions), ("judgments", judgments), ("other", other)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return tmp_path


def fill(work, name, answer, separator=","):
    """Fill in the labels as a person with a spreadsheet does."""
    text = (work / "out" / "for_labellers" / "labels.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    with (work / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(reversed(rows[0])), delimiter=separator)
        writer.writeheader()
        writer.writerows({**row, "label": answer(row)} for row in rows)
    return work / name


def test_export_is_blind_and_safe(work):
    words = ["export", "stories", "out", "runs/mllm", "runs/imagechain", "--", "--num", "100"]
    done = run_script("agreement", *words, cwd=work)
    assert done.returncode == 0, done.stderr
    folder = work / "out" / "for_labellers"
    data = (folder / "labels.csv").read_bytes()
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert rows[0] == ["row", "picture", "reference", "prediction", "label"]
    # 24 predictions, 3 of them the same in both runs, 2 of the story whose picture cannot be read
    assert len(rows) == 1 + 24 - 3 - 2
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) or ";+" in cell for row in rows for cell in row)
    assert all((folder / row[1]).is_file() and row[4] == "" for row in rows[1:])
    assert sorted(path.name for path in folder.iterdir()) == ["INSTRUCTIONS.txt", "labels.csv", "pictures"]
    images = [path.read_bytes() for path in (folder / "pictures").iterdir()]
    assert len(images) == len(rows) - 1 and not any(b"secret" in image for image in images)
    with Image.open(folder / rows[1][1]) as image:
        assert image.size == (2 * 320 + 6, 240)
    key = (work / "out" / "key" / "key.jsonl").read_text()
    assert not re.search(r"yes|\bno\b|verdict", key)
    assert "a frame of its last scene cannot be read" in (work / "out" / "key" / "skipped.jsonl").read_text()


def test_labels_come_back_and_people_and_judges_are_compared(work, exported, agreement):
    fill(work, "anna.csv", lambda row: "Yes" if row["reference"] == row["prediction"] else "no")
    fill(work, "bob.csv", lambda row: {"1": "y", "2": ""}.get(row["reference"][-2], "N"), ";")
    other = work / "runs" / "imagechain" / "other.jsonl"
    done = agreement(
        "import", "--key", "out/key/key.jsonl", "--output-dir", "report", "--labels", "anna.csv", "bob=bob.csv",
        "--judgments", f"strange judge={other}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((work / "report" / "agreement.json").read_text())
    pairs = {(one["first"]["name"], one["second"]["name"]): one for one in found["pairs"]}
    assert set(pairs) == {
        ("anna", "mock"), ("anna", "strange judge"), ("bob", "mock"), ("bob", "strange judge"), ("anna", "bob"),
        ("mock", "strange judge"),
    }  # fmt: skip
    assert pairs["anna", "mock"]["kappa"]["value"] == 1.0 and pairs["anna", "mock"]["counts"]["both_no"] == 19 - 9
    assert pairs["mock", "strange judge"]["n"] == 12
    rates = {one["rater"]: one["yes_weighted"]["value"] for one in found["raters"]}
    assert rates["mock"] == pytest.approx(12 / 24, abs=0.05)
    empty = [row for row in found["skipped"] if row["rater"] == "bob"]
    assert empty and {row["reason"] for row in empty} == {"empty label"}
    assert f"bob: {len(empty)} rows do not count: empty label" in (work / "report" / "agreement.md").read_text()
    assert all((work / "report" / f"agreement.{end}").is_file() for end in ("csv", "tex"))


def test_an_export_is_not_written_over(work, exported, agreement):
    again = agreement(*EXPORT)
    assert again.returncode == 2 and "--overwrite" in again.stderr
    assert agreement(*EXPORT, "--overwrite", "--num", "4").returncode == 0
    assert len(list((work / "out" / "for_labellers" / "pictures").iterdir())) in (3, 4)  # one picture cannot be read


def test_a_dry_run_of_the_export_writes_nothing(work, agreement):
    done = agreement(*EXPORT, "--dry-run")
    assert done.returncode == 0 and "imagechain, yes: " in done.stdout and not (work / "out").exists()


MLLM, IMAGECHAIN = "runs/mllm/judgments.jsonl", "runs/imagechain/judgments.jsonl"
PREDICTIONS = "runs/mllm/predictions.jsonl"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["import", "--key", "k", "--output-dir", "r", "--labels", "nowhere.csv"], "nowhere.csv is no file"),
        (["import", "--key", "k", "--output-dir", "r", "--labels", MLLM], "the key/key.jsonl of an export was wanted"),
        (["import", "--key", PREDICTIONS, "--output-dir", "r", "--labels", MLLM], "Give the key of this very export"),
        (["judges", "--output-dir", "r", "--judgments", MLLM, IMAGECHAIN], "verdicts of two judges were wanted"),
        (
            ["judges", "--output-dir", "r", "--judgments", f"a={MLLM}", f"b={PREDICTIONS}"],
            "found ['a']; files of different judges that call themselves the same are told apart by NAME=FILE. "
            f"12 rows of {PREDICTIONS} have no verdict",
        ),
        (["judges", "--output-dir", "r", "--judgments", MLLM, "runs/mllm/other.jsonl"], "both Yes and No to the same"),
        ([*EXPORT[:1], "--stories", "runs", *EXPORT[3:]], "holds no validation stories"),
        ([*EXPORT[:-2], "runs"], "a run folder with predictions.jsonl"),
        ([*EXPORT, "runs/mllm"], "one of the folders is given twice"),
        (["exprot"], "one of export, import, judges was wanted"),
        ([], "one of export, import, judges was wanted, found nothing"),
    ],
)
def test_wrong_input_is_refused_with_what_to_do(agreement, arguments, words):
    done = agreement(*arguments)
    assert done.returncode == 2 and words in done.stderr


def test_judgments_of_other_texts_or_without_ids_are_never_matched(work, agreement):
    rows = [{"id": 3, "verdict": "yes"}, {"id": "s1", "verdict": "no", "pair_sha256": "of other texts"}]
    (work / "strange.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = agreement("judges", "--output-dir", "r", "--judgments", MLLM, "strange.jsonl")
    assert done.returncode == 2 and "no prediction in common" in done.stderr


def test_predictions_of_another_dataset_are_refused(work, agreement):
    path = work / "runs" / "mllm" / "predictions.jsonl"
    path.write_text(path.read_text().replace("lifting", "dropping").replace("=HYPERLINK", "=X"))
    done = agreement(*EXPORT[:-1])
    assert done.returncode == 2 and "holds none of the 12 predicted stories" in done.stderr


def test_predictions_about_another_text_are_left_out_and_listed(agreement, work):
    path = work / "runs" / "mllm" / "predictions.jsonl"
    path.write_text(path.read_text().replace(json.dumps(reference(5)), json.dumps("Somebody else wrote this.")))
    done = agreement(*EXPORT, "--num", "100")
    assert done.returncode == 0 and "1 predictions are left out; s5: its reference is 'Somebody else" in done.stdout
    listed = [json.loads(line) for line in (work / "out" / "key" / "skipped.jsonl").read_text().splitlines()]
    assert "s5" in {row["id"] for row in listed if "ends with 'The woman is lifting" in row["reason"]}


def test_judges_are_compared_without_people(work):
    done = run_script("agreement", "judges", "r", "a=runs/mllm/judgments.jsonl", "b=runs/mllm/other.jsonl", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "| a / b " in done.stdout and "People" not in done.stdout


class Handler(http.server.BaseHTTPRequestHandler):
    """A judge that says Yes to everything, and a model that paraphrases (one story of three not at all)."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": "m"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        answer = "Yes"
        if "Sentence: " in text:
            number = re.findall(r"\d+", text)[-1:] or ["1"]
            answer = "" if int(number[0]) % 3 == 0 else "A person raises a box, that is " + number[0]
        self.server.asked += 1
        self.reply({"choices": [{"index": 0, "message": {"role": "assistant", "content": answer}}]})

    def reply(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked = 0
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_judge_that_always_says_yes_is_found_out(work, server, judge_bias, caplog):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    flags = ["--base-url", url, "--model", "m", "--paraphrase-base-url", url, "--paraphrase-model", "m"]
    done = judge_bias(*flags)
    assert done.returncode == 0, done.stderr
    found = {one["kind"]: one for one in json.loads((work / "bias" / "bias.json").read_text())["pairs"]}
    # The hostile text has no auxiliary verb and two of its numbers' paraphrases are empty; the rest makes pairs.
    assert {kind: one["n"] for kind, one in found.items()} == {
        "same": 12, "paraphrase": 9, "other_story": 12, "other_actor": 12, "negated": 11, "all_no": 23, "all_yes": 21,
    }  # fmt: skip
    assert all(one["rate_of_yes"] == 1.0 for one in found.values())
    assert found["other_actor"]["right"] == "mostly no"  # and so not in all_no
    assert found["all_no"]["low_95"] > 0.85 and found["all_no"]["right"] == "no"
    assert "references have no paraphrase, the first because of: the answer is not one sentence" in caplog.text
    asked = server.asked
    again = judge_bias(*flags)
    assert again.returncode == 0 and server.asked == asked  # nothing is asked twice


def test_a_folder_that_is_being_measured_is_left_alone(work, judge_bias):
    with only_one(work / "bias" / ".measuring"):
        done = judge_bias("--judge", "mock")
    assert done.returncode == 2 and "another process is writing" in done.stderr
    assert not (work / "bias" / "predictions.jsonl").exists()


def test_a_judge_of_words_fails_paraphrases_only(work):
    (work / "paraphrases.jsonl").write_text(
        "".join(json.dumps({"reference": reference(i), "paraphrase": f"Number {i} goes up."}) + "\n" for i in range(6))
    )
    flags = ["--", "--paraphrases", "paraphrases.jsonl"]
    done = run_script("judge_bias", "stories", "bias", *flags, cwd=work, JUDGE="mock")
    assert done.returncode == 0, done.stderr
    found = {one["kind"]: one for one in json.loads((work / "bias" / "bias.json").read_text())["pairs"]}
    assert (found["same"]["yes"], found["all_no"]["yes"]) == (12, 0)
    assert (found["paraphrase"]["n"], found["paraphrase"]["yes"]) == (6, 0)
    assert "paraphrase: 6 stories make no pair: no paraphrase is given" in done.stdout


def test_a_dead_server_is_said_and_nothing_is_pretended(work, judge_bias):
    done = judge_bias("--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--cache", "off")
    assert done.returncode == 2 and "does not answer" in done.stderr
    assert not (work / "bias" / "bias.md").exists()
    assert json.loads((work / "bias" / "bias_run.json").read_text())["status"] == "error"


def test_text_metrics_by_script(work):
    done = run_script("text_metrics", "metrics", "runs/mllm", "runs/imagechain", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "sacre" not in done.stderr.lower() and "BLEU" in done.stdout and "All runs together" in done.stdout
