"""The benchmark's files: three CSVs, pictures of two kinds, synonym graphs; and files that are not the benchmark's."""

import dataclasses
import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from eval.mementos import graphs
from eval.mementos.data import DOMAINS, load_benchmark
from eval.mementos.graphs import load_graphs, read_graph_json, read_pickle
from eval.mementos.predict import MementosConfig, usable_samples
from eval.mementos.sequences import group_evenly, settle
from llava.imagechain.config import ConfigError
from llava.imagechain.variants import VARIANTS

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "mementos"
needs_benchmark = pytest.mark.skipif(
    not (SHARED / "dl_description.csv").is_file(), reason="needs the benchmark's CSVs in ../shared/data/mementos"
)


def write_csv(root, domain="comics", rows=(("cmc_1.png", "A bear pulls a cloud."),), columns=None):
    header = ",".join(columns or DOMAINS[domain].columns)
    lines = [header, *(",".join(f'"{value}"' for value in row) for row in rows)]
    root.mkdir(parents=True, exist_ok=True)
    (root / DOMAINS[domain].csv_name).write_bytes("\r\n".join(lines).encode() + b"\r\n")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


# --- descriptions -----------------------------------------------------------------------------------------------------


def test_each_csv_is_read_with_its_own_column_names(tmp_path):
    write_csv(tmp_path, "comics", [("cmc_1.png", "A bear, pulling.")])
    write_csv(tmp_path / "deeper", "dailylife", [("rw_1.png", "Two  men\nfence.")])
    write_csv(tmp_path, "robotics", [("rb_1.png", "An arm opens a drawer.")])
    found = load_benchmark(tmp_path)
    assert [(s.sample_id, s.domain, s.reference) for s in found.samples] == [
        ("cmc_1", "comics", "A bear, pulling."),
        ("rw_1", "dailylife", "Two men fence."),
        ("rb_1", "robotics", "An arm opens a drawer."),
    ]
    assert found.counts() == {"comics": 1, "dailylife": 1, "robotics": 1}


def test_half_a_full_width_comma_becomes_a_space_and_is_named(tmp_path, caplog):
    data = b"image_name,description\r\nrw_1.png,They fence\xef\xbc then stop.\r\n"
    (tmp_path / "dl_description.csv").write_bytes(data)
    found = load_benchmark(tmp_path)
    assert found.samples[0].reference == "They fence then stop."
    assert "dl_description.csv: 1 places are not UTF-8" in caplog.text


def test_rows_that_cannot_be_used_are_listed_once_with_the_reason(tmp_path):
    rows = [("cmc_1.png", "A."), ("cmc_1.png", "B."), ("cmc_2.png", "  "), ("", "C."), ("cmc_3.png", "D.")]
    write_csv(tmp_path, rows=rows)
    found = load_benchmark(tmp_path)
    assert [sample.reference for sample in found.samples] == ["A.", "D."]
    assert [(row["id"], row["reason"]) for row in found.skipped] == [
        ("cmc_1", "the image was named before; the first row counts"),
        ("cmc_2", "the description is empty"),
        (None, "no image is named"),
    ]


def test_other_columns_no_rows_and_no_files_are_refused_together(tmp_path):
    write_csv(tmp_path, "comics", columns=("file", "text"))
    write_csv(tmp_path, "robotics", rows=())
    touch(tmp_path, "a/dl_description.csv", "b/dl_description.csv")
    with pytest.raises(ConfigError) as refused:
        load_benchmark(tmp_path)
    text = str(refused.value)
    assert "image_name or image" in text and "found file, text" in text
    assert "robo_description.csv: rows under its column names were wanted" in text
    assert "one dl_description.csv was wanted, found a/dl_description.csv and b/dl_description.csv" in text
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no description of"):
        load_benchmark(tmp_path / "empty")
    with pytest.raises(ConfigError, match="a folder with"):
        load_benchmark(tmp_path / "nowhere")


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_composites_folders_and_numbered_files_are_found_and_frames_are_in_the_order_of_their_numbers(tmp_path):
    write_csv(tmp_path, rows=[("cmc_1.png", "A."), ("cmc_10.png", "B."), ("cmc_11.png", "C.")])
    touch(tmp_path, "c/cmc_1.png", "c/cmc_10.png", "s/cmc_10/frame10.jpg", "s/cmc_10/frame2.jpg", "s/cmc_10/notes.txt")
    touch(tmp_path, "flat/cmc_1_10.png", "flat/cmc_1_9.png", "flat/cmc_1-1.PNG", "flat/other_1.png")
    one, ten, eleven = load_benchmark(tmp_path).samples
    assert [path.name for path in one.pictures(composite=False)] == ["cmc_1-1.PNG", "cmc_1_9.png", "cmc_1_10.png"]
    assert [path.name for path in ten.pictures(composite=False)] == ["frame2.jpg", "frame10.jpg"]
    assert [path.name for path in ten.pictures(composite=True)] == ["cmc_10.png"]
    with pytest.raises(ValueError, match="found nothing"):
        eleven.pictures(composite=True)


def test_a_sample_with_the_other_kind_of_pictures_only_says_so(tmp_path):
    write_csv(tmp_path, rows=[("cmc_1.png", "A."), ("cmc_2.png", "B.")])
    touch(tmp_path, "cmc_1.png", "cmc_2/1.png")
    one, two = load_benchmark(tmp_path).samples
    with pytest.raises(ValueError, match=r"a composite only \(--frames composite\)"):
        one.pictures(composite=False)
    with pytest.raises(ValueError, match="found single frames only"):
        two.pictures(composite=True)


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path, caplog):
    data = tmp_path / "data"
    write_csv(data, rows=[("cmc_1.png", "A."), ("cmc_2.png", "B.")])
    touch(tmp_path, "secret.png", "data/store/kept.png")
    (data / "cmc_1.png").symlink_to(tmp_path / "secret.png")
    (data / "cmc_2.png").symlink_to(data / "store" / "kept.png")
    one, two = load_benchmark(data).samples
    with pytest.raises(ValueError, match="found nothing"):
        one.pictures(composite=True)
    assert [path.name for path in two.pictures(composite=True)] == ["cmc_2.png"]
    assert "1 links lead out of" in caplog.text and "cmc_1.png" in caplog.text


def test_pictures_that_are_there_twice_are_not_guessed(tmp_path):
    write_csv(tmp_path)
    touch(tmp_path, "a/cmc_1.png", "b/cmc_1.png", "a/cmc_1/1.png", "b/cmc_1/1.png")
    sample = load_benchmark(tmp_path).samples[0]
    with pytest.raises(ValueError, match=r"a/cmc_1.png and b/cmc_1.png"):
        sample.pictures(composite=True)
    with pytest.raises(ValueError, match="single frames in one folder"):
        sample.pictures(composite=False)


def test_files_that_a_system_leaves_beside_pictures_are_no_frames(tmp_path):
    write_csv(tmp_path)
    touch(tmp_path, "cmc_1/1.png", "cmc_1/._1.png", "__MACOSX/cmc_1/._1.png")
    assert [path.name for path in load_benchmark(tmp_path).samples[0].pictures(composite=False)] == ["1.png"]


def test_a_composite_among_its_own_frames_is_no_frame(tmp_path):
    write_csv(tmp_path)
    touch(tmp_path, "cmc_1/cmc_1.png", "cmc_1/cmc_1_2.png", "cmc_1/cmc_1_1.png")
    sample = load_benchmark(tmp_path).samples[0]
    assert [path.name for path in sample.pictures(composite=False)] == ["cmc_1_1.png", "cmc_1_2.png"]
    assert [path.name for path in sample.pictures(composite=True)] == ["cmc_1.png"]


def test_a_raised_digit_in_a_name_is_no_number(tmp_path):
    write_csv(tmp_path)
    touch(tmp_path, "cmc_1/²2.png", "cmc_1/1.png")
    assert [path.name for path in load_benchmark(tmp_path).samples[0].pictures(composite=False)] == ["1.png", "²2.png"]


@pytest.mark.parametrize(("count", "most", "sizes"), [(9, 6, [1, 2, 1, 2, 1, 2]), (3, 6, [1] * 3), (8, 1, [8])])
def test_frames_are_grouped_evenly_in_order(count, most, sizes):
    groups = group_evenly([Path(str(number)) for number in range(count)], most)
    assert [len(group) for group in groups] == sizes
    assert [int(path.name) for group in groups for path in group] == list(range(count))


def test_each_variant_has_its_own_way_and_every_part_of_it_is_a_setting():
    own, single, one = (settle(VARIANTS[name]) for name in ("imagechain", "mllm_ft", "final_scene"))
    assert (own.frames, own.earlier_text, own.question, own.answer) == ("groups", "own", "own", "joined")
    assert (single.frames, single.earlier_text, single.question, single.answer) == (
        "groups", "empty", "benchmark", "last",
    )  # fmt: skip
    assert one.frames == "average"
    changed = settle(VARIANTS["mllm_ft"], frames="composite", earlier_text="own")
    assert (changed.frames, changed.question, changed.answer) == ("composite", "own", "joined")
    assert settle(VARIANTS["imagechain"], question="benchmark").answer == "last"


def test_joined_answers_are_sentences():
    assert settle(VARIANTS["imagechain"]).text(["A man runs.", "He falls", "", "Why?"]) == "A man runs. He falls. Why?"


def test_a_few_samples_are_not_measured_by_all_bad_rows(tmp_path):
    write_csv(tmp_path, rows=[("cmc_1.png", "A."), ("cmc_2.png", ""), ("cmc_3.png", "B.")])
    touch(tmp_path, "cmc_1.png", "cmc_3.png")
    benchmark, showing = load_benchmark(tmp_path), settle(VARIANTS["imagechain"], frames="composite")
    config = MementosConfig(checkpoint=tmp_path, variant="imagechain", data=tmp_path, output_dir=tmp_path, limit=1)
    described, unusable = usable_samples(config, benchmark, showing)
    assert [one.sample.sample_id for one in described] == ["cmc_1"] and not unusable
    with pytest.raises(ConfigError, match="1 of 3"):
        usable_samples(dataclasses.replace(config, limit=None), benchmark, showing)


# --- graphs -----------------------------------------------------------------------------------------------------------


def as_main(name, content):
    """Return a pickle of an object of class __main__.NAME with one attribute, as the notebook writes it."""
    main = sys.modules["__main__"]
    kind = type(name, (), {"__module__": "__main__"})
    setattr(main, name, kind)
    try:
        graph = kind()
        graph.graph = content
        return pickle.dumps(graph, protocol=4)
    finally:
        delattr(main, name)


CONTENT = {"reach": {"": ["grasp"], "touch": ["grab"]}, "put back": {"": ["return"]}}


def test_a_graph_is_read_from_a_pickle_and_from_json(tmp_path):
    path = tmp_path / "g.pkl"
    path.write_bytes(as_main("ActionGraph", CONTENT))
    assert read_pickle(path, "action") == CONTENT
    for value in (CONTENT, {"adjacency": CONTENT, "edges": []}):
        (tmp_path / "g.json").write_text(json.dumps(value))
        assert read_graph_json(tmp_path / "g.json") == CONTENT


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_nothing_in_it_runs(tmp_path, protocol):
    path, traces = tmp_path / "g.pkl", tmp_path / "it ran"
    for content in (Malicious(traces), {"graph": [Malicious(traces)]}):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(ConfigError, match="is refused"):
            read_pickle(path, "action")
        assert not traces.exists()
    pickle.loads(pickle.dumps(Malicious(traces)))
    assert traces.exists()  # the file was dangerous indeed


def pushed(module, name):
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x04" + pushed("os", "system") + b")\x81.", "names os.system"),
        (b"\x80\x04" + pushed("builtins", "eval") + b")\x81.", "names builtins.eval"),
        (b"\x80\x04" + pushed("__main__", "Other") + b")\x81.", "names __main__.Other"),
        (b"\x80\x04" + pushed("__main__", "ActionGraph") + b")R.", "REDUCE"),
        (b"cos\nsystem\n(S'true'\ntR.", "GLOBAL"),
        (b"\x80\x04\x82\x01.", "EXT1"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "BYTEARRAY8|expected"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "LONG_BINPUT"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.", "exhausted|frame|wanted"),
        (b"\x80\x04\x95" + b"\xff" * 8 + b"}.", "FRAME|frame"),
        (b"", "exhausted|wanted"),
        (b"not a pickle", "wanted"),
        (b"\x80\x04}.", "item -> next item"),
    ],
)
def test_anything_but_one_object_of_the_one_class_is_refused(tmp_path, data, reason):
    path = tmp_path / "g.pkl"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=reason):
        read_pickle(path, "action")


@pytest.mark.parametrize("content", [{"a": ["b"]}, {"a": {"": "b"}}, {"a": {"": [1]}}, ["a"], 7, {"graph": 1}])
def test_an_object_with_another_content_is_refused(tmp_path, content):
    path = tmp_path / "g.pkl"
    path.write_bytes(as_main("ActionGraph", content))
    with pytest.raises(ConfigError):
        read_pickle(path, "action")
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError):
        read_graph_json(tmp_path / "g.json")


def test_a_small_pickle_that_names_one_list_very_often_is_refused(tmp_path):
    path = tmp_path / "g.pkl"
    path.write_bytes(as_main("ActionGraph", {str(number): {"": ["a"] * 500} for number in range(500)}))
    words = ["a"] * 500
    assert len(read_pickle(path, "action")) == 500
    path.write_bytes(as_main("ActionGraph", {str(number): {"": words} for number in range(500)}))
    with pytest.raises(ConfigError, match="at most one word for each byte"):
        read_pickle(path, "action")


def test_the_class_of_the_other_kind_of_words_is_refused(tmp_path):
    path = tmp_path / "g.pkl"
    path.write_bytes(as_main("ObjectGraph", CONTENT))
    with pytest.raises(ConfigError, match=r"only __main__\.ActionGraph"):
        read_pickle(path, "action")
    assert read_pickle(path, "object") == CONTENT


def test_a_file_too_large_for_a_graph_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "LARGEST", 10)
    (tmp_path / "g.json").write_text("[" * 100)
    with pytest.raises(ConfigError, match="at most"):
        read_graph_json(tmp_path / "g.json")
    monkeypatch.undo()
    (tmp_path / "g.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError):
        read_graph_json(tmp_path / "g.json")


def test_missing_graphs_are_named_and_json_goes_before_pickle(tmp_path):
    write_csv(tmp_path)
    with pytest.raises(ConfigError, match=r"one cmc_object_graph_v1.json or cmc_object_graph_v1.pkl"):
        load_graphs(load_benchmark(tmp_path), DOMAINS["comics"])
    for kind, name in (("object", "ObjectGraph"), ("action", "ActionGraph")):
        (tmp_path / f"cmc_{kind}_graph_v1.pkl").write_bytes(as_main(name, CONTENT))
    (tmp_path / "cmc_action_graph_v1.json").write_text('{"a": {"": ["b"]}}')
    found = load_graphs(load_benchmark(tmp_path), DOMAINS["comics"])
    assert found == {"object": CONTENT, "action": {"a": {"": ["b"]}}}


# --- the benchmark itself ---------------------------------------------------------------------------------------------


@needs_benchmark
def test_the_benchmarks_own_files_are_read_whole(caplog):
    found = load_benchmark(SHARED)
    assert found.counts() == {"comics": 50, "dailylife": 448, "robotics": 199}
    assert not found.skipped
    assert "dl_description.csv: 1 places are not UTF-8" in caplog.text
    words = {name: [len(s.reference.split()) for s in found.samples if s.domain == name] for name in DOMAINS}
    assert {name: round(sum(counts) / len(counts)) for name, counts in words.items()} == {
        "comics": 80, "dailylife": 103, "robotics": 45,
    }  # fmt: skip
    edges = {
        name: {kind: sum(len(w) for f in graph.values() for w in f.values()) for kind, graph in loaded.items()}
        for name, loaded in ((name, load_graphs(found, domain)) for name, domain in DOMAINS.items())
    }
    assert edges == {
        "comics": {"object": 243, "action": 271},
        "dailylife": {"object": 1267, "action": 1112},
        "robotics": {"object": 296, "action": 284},
    }
