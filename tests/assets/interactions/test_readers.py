import gzip
from pathlib import Path

import polars as pl
import pytest

from assets.interactions import synthetic
from assets.interactions.readers.base import POSITION, DatasetError, layouts, open_reader
from assets.interactions.readers.delimited import Dialect, scan_text
from assets.interactions.synthetic import SyntheticConfig, write_synthetic
from tests.assets.interactions.sources import contract

ML_100K = Path(__file__).parents[3] / ".belvedere" / "datasets" / "ml-100k"  # where `make run` puts it


def rows_of(batches) -> pl.DataFrame:
    return pl.concat([b.rows for b in batches], how="diagonal")


def faults_of(batches) -> list[tuple]:
    return [row for b in batches for row in b.faults.select(POSITION, "reason").rows()]


def scan(path: Path, **dialect):
    read = [rows for _, rows in scan_text(path, path.name, Dialect(**dialect))]
    return pl.concat([r.rows for r in read], how="diagonal"), pl.concat([r.faults for r in read])


def test_every_layout_is_found_by_name():
    assert set(layouts()) >= {
        "contract",
        "movielens-100k",
        "movielens-1m",
        "movielens-latest",
        "recbole",
        "synthetic",
    }


@pytest.mark.parametrize("source", ["", "nonsense", "csv:/tmp", "contract:"])
def test_unknown_layout_names_the_known_ones(source):
    with pytest.raises(DatasetError, match="names no known layout.*contract, movielens-100k"):
        open_reader(source)


def test_missing_folder_and_missing_table_say_what_to_do(tmp_path):
    with pytest.raises(DatasetError, match="does not exist: set BELVEDERE_DATASET"):
        open_reader(f"contract:{tmp_path}/nowhere")
    with pytest.raises(DatasetError, match="has no interactions: add interactions.csv"):
        list(open_reader(f"contract:{tmp_path}").interactions())
    with pytest.raises(DatasetError, match="has no file u.data"):
        list(open_reader(f"movielens-100k:{tmp_path}").interactions())


def test_missing_column_names_it_and_the_fix(tmp_path):
    source = contract(tmp_path, "u,a,1\n", header="user,item_id,timestamp")
    with pytest.raises(DatasetError, match="has no column user_id .it has user, item_id, timestamp.*rename it"):
        list(open_reader(source).interactions())


def test_contract_csv_keeps_extra_columns_as_attributes(tmp_path):
    source = contract(
        tmp_path,
        "u,a,1,x\n",
        items='item_id,title,year,"a ""name"""\n7,"A, B",1999,"q""z"\n',
        header="user_id,item_id,timestamp,device",
        users="user_id,city\nu,Graz\n",
    )
    reader = open_reader(source)
    assert next(iter(reader.interactions())).unused == ("device",)
    item = rows_of(reader.items()).to_dicts()[0]
    assert item["title"] == "A, B" and item["attributes"] == '{"a \\"name\\"":"q\\"z","year":"1999"}'
    assert rows_of(reader.users())["attributes"].to_list() == ['{"city":"Graz"}']


def test_contract_parquet_folder_in_order_of_names(tmp_path):
    (tmp_path / "interactions").mkdir()
    for name, user in (("2.parquet", 20), ("1.parquet", 10)):
        pl.DataFrame({"user_id": [user], "item_id": [1], "timestamp": [5], "value": [None]}).write_parquet(
            tmp_path / "interactions" / name
        )
    pl.DataFrame({"item_id": [1], "title": ["x"], "categories": [["p", "q"]]}).write_parquet(tmp_path / "items.parquet")
    batches = list(open_reader(f"contract:{tmp_path}").interactions())
    assert [b.source for b in batches] == ["interactions/1.parquet", "interactions/2.parquet"]
    assert rows_of(batches)["user_id"].to_list() == [10, 20]


def test_the_same_table_twice_is_refused(tmp_path):
    source = contract(tmp_path, "u,a,1,r,1\n")
    (tmp_path / "interactions").mkdir()
    (tmp_path / "interactions" / "more.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(DatasetError, match="more than once"):
        list(open_reader(source).interactions())


def test_movielens_100k(tmp_path):
    (tmp_path / "u.data").write_text("196\t242\t3\t881250949\n186\t302\t4\t891717742\n")
    flags = "|".join(["0"] * 5 + ["1"] + ["0"] * 12 + ["1"])
    (tmp_path / "u.item").write_bytes(f"242|Misérables, Les (1995)|01-Jan-1995||http://x|{flags}\n".encode("latin-1"))
    (tmp_path / "u.user").write_text("196|24|M|writer|85711\n")
    reader = open_reader(f"movielens-100k:{tmp_path}")
    assert rows_of(reader.interactions()).rows() == [
        (1, "196", "242", "3", "881250949", "rating"),
        (2, "186", "302", "4", "891717742", "rating"),
    ]
    item = rows_of(reader.items()).to_dicts()[0]
    assert item["title"] == "Misérables, Les" and item["categories"] == ["Comedy", "Western"]
    assert '"release_year":"1995"' in item["attributes"]
    assert '"occupation":"writer"' in rows_of(reader.users())["attributes"][0]


def test_movielens_1m(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3\n")
    (tmp_path / "movies.dat").write_bytes("1193::Café: One (1975)::Drama|Children's\n".encode("latin-1"))
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n")
    reader = open_reader(f"movielens-1m:{tmp_path}")
    batches = list(reader.interactions())
    assert rows_of(batches).select("user_id", "item_id", "value").rows() == [("1", "1193", "5")]
    assert faults_of(batches) == [(2, "malformed_row")]
    assert rows_of(reader.items()).select("title", "categories").rows() == [("Café: One", "Drama|Children's")]
    assert rows_of(reader.users())["user_id"].to_list() == ["1"]


def test_movielens_latest(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\r\n1,3,4.0,964981247\r\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n3,"American President, The (1995)",Comedy|Drama\n4,Odd,(no genres listed)\n'
    )
    reader = open_reader(f"movielens-latest:{tmp_path}")
    assert rows_of(reader.interactions()).select("user_id", "value", "timestamp").rows() == [("1", "4.0", "964981247")]
    assert rows_of(reader.items()).select("title", "categories").rows() == [
        ("American President, The", "Comedy|Drama"),
        ("Odd", None),
    ]
    (tmp_path / "ratings.csv").write_text("user,movieId,rating,timestamp\n1,3,4,1\n")
    with pytest.raises(DatasetError, match="no column userId"):
        list(reader.interactions())


def test_recbole_maps_well_known_columns(tmp_path):
    (tmp_path / "x.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t4\t964981247\n"
    )
    (tmp_path / "x.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '7\tThe "Best" One\t1995\tAnimation Children\'s Comedy\n'
    )
    (tmp_path / "x.user").write_text("user_id:token\tage:token\n1\t24\n")
    reader = open_reader(f"recbole:{tmp_path}")
    assert rows_of(reader.interactions()).select("user_id", "item_id", "value", "action").rows() == [
        ("1", "7", "4", "rating")
    ]
    item = rows_of(reader.items()).to_dicts()[0]
    assert item["title"] == 'The "Best" One' and item["categories"] == ["Animation", "Children's", "Comedy"]
    assert item["attributes"] == '{"release_year":"1995"}'
    assert rows_of(reader.users())["attributes"].to_list() == ['{"age":"24"}']


def test_recbole_without_items_derives_them_from_events(tmp_path):
    (tmp_path / "x.inter").write_text(
        "session_id:token\tproduct_id:token\ttimestamp:float\ns1\tp2\t5\ns1\tp1\t6\ns2\tp2\t7\n"
    )
    reader = open_reader(f"recbole:{tmp_path}")
    assert rows_of(reader.items()).select("item_id", "title").rows() == [("p2", "p2"), ("p1", "p1")]
    assert rows_of(reader.interactions())["user_id"].to_list() == ["s1", "s1", "s2"]
    (tmp_path / "x.inter").write_text("a:token\tb:token\tweight:float\n1\t2\t3\n")
    with pytest.raises(DatasetError, match="no column timestamp"):
        list(reader.interactions())


def test_recbole_prefers_the_contract_s_own_names(tmp_path):
    (tmp_path / "x.inter").write_text(
        "item_id:token\tsession:token\trating:float\tvalue:float\ttimestamp:float\n7\ts\t1\t4\t964981247\n"
    )
    (tmp_path / "x.item").write_text(
        "item_id:token\tmovie_title:token\ttitle:token\tclass:token\tcategories:token\n7\tM\tT\tc\td\n"
    )
    reader = open_reader(f"recbole:{tmp_path}")
    assert rows_of(reader.interactions()).select("user_id", "item_id", "value").rows() == [("s", "7", "4")]
    assert rows_of(reader.items()).select("title", "categories").rows() == [("T", ["d"])]


@pytest.mark.skipif(not ML_100K.exists(), reason="MovieLens-100K is not on this machine")
def test_recbole_reads_the_real_movielens():
    reader = open_reader(f"recbole:{ML_100K}")
    assert [sum(len(b.rows) for b in read()) for read in (reader.interactions, reader.items, reader.users)] == [
        100_000,
        1682,
        943,
    ]
    assert "Children's" in rows_of(reader.items())["categories"].explode().to_list()


def test_a_long_line_is_refused_with_its_place_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n" + "y" * 5000 + ",3\n4,5\n")
    for block in (64, 100_000):
        rows, faults = scan(path, max_line_bytes=1000, block_bytes=block)
        assert rows.rows() == [(1, "1", "2"), (3, "4", "5")]
        assert faults.select(POSITION, "reason").rows() == [(2, "line_too_long")]
        assert len(faults["payload"][0]) <= 4096


def test_a_line_of_200_mb_stays_out_of_memory(tmp_path):
    import subprocess
    import sys

    path = tmp_path / "big.csv"
    with path.open("wb") as sink:
        sink.write(b"a,b\n1,2\n")
        for _ in range(200):
            sink.write(b"z" * 2**20)
        sink.write(b",3\n4,5\n")
    # In a process of its own, whose address space is too small for the line.
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from assets.interactions.readers.delimited import Dialect, scan_text\n"
        "import polars as pl\n"
        "pl.select(1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read = [r for _, r in scan_text(Path(sys.argv[1]), 'big.csv', Dialect())]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "print([r for x in read for r in x.rows.rows()], [f for x in read for f in x.faults['reason']])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    grown, found = done.stdout.splitlines()
    assert int(grown) < 120 * 1024  # KiB
    assert found == "[(1, '1', '2'), (3, '4', '5')] ['line_too_long']"


def test_quotes_newlines_and_stray_quotes(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('id,text\n1,"two\nlines, and ""more"""\n2,5" drive\n3,"open\n4,plain\n5,"closed"\n')
    for block in (7, 30, 10_000):
        rows, faults = scan(path, block_bytes=block)
        assert rows.rows() == [
            (1, "1", 'two\nlines, and "more"'),
            (3, "2", '5" drive'),
            (5, "4", "plain"),
            (6, "5", "closed"),
        ], block
        assert faults.select(POSITION, "reason").rows() == [(4, "malformed_row")]


def test_ragged_rows_blank_lines_bom_and_encoding(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3\r\n4,5,6\r\n7,\xff\r\n 8 , \r\n")
    rows, faults = scan(path)
    assert rows.rows() == [(1, "1", "2"), (6, " 8 ", None)]
    assert sorted(faults.select(POSITION, "reason").rows()) == [
        (3, "malformed_row"),
        (4, "malformed_row"),
        (5, "bad_encoding"),
    ]


def test_utf16_and_repeated_columns_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes("a,b\n1,2\n".encode("utf-16"))
    with pytest.raises(DatasetError, match="UTF-16: save it as UTF-8"):
        scan(path)
    path.write_text("a,a\n1,2\n")
    with pytest.raises(DatasetError, match="repeated column name"):
        scan(path)


def test_lines_before_the_header_and_old_line_ends(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbf\r\n\na,b\r\n1,2\r\n")
    assert scan(path)[0].rows() == [(1, "1", "2")]
    for nothing in (b"\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n\r\n"):
        path.write_bytes(nothing)
        assert scan(path)[1].select(POSITION, "reason").rows() == [(0, "empty_file")]
    path.write_bytes(b"a,b\r1,2\r")
    with pytest.raises(DatasetError, match="carriage returns alone: save it with line feeds"):
        scan(path)
    path.write_bytes("a,b\n1,2\n".encode("utf-16-le"))
    with pytest.raises(DatasetError, match="UTF-16: save it as UTF-8"):
        scan(path)


def test_empty_and_cut_files_become_one_fault_each(tmp_path):
    folder = tmp_path / "interactions"
    folder.mkdir()
    good = "user_id,item_id,timestamp\nu,a,1767225600\n"
    (folder / "0.csv").write_text("")
    (folder / "1.csv").write_text(good)
    (folder / "2.csv.gz").write_bytes(gzip.compress((good + "u,b,1767225600\n" * 20_000).encode())[:-20])
    pl.DataFrame({"user_id": ["u"] * 9, "item_id": ["a"] * 9, "timestamp": [1767225600] * 9}).write_parquet(
        folder / "3.parquet"
    )
    whole = (folder / "3.parquet").read_bytes()
    (folder / "4.parquet").write_bytes(whole[:-30])
    (folder / "5.parquet").write_bytes(b"")
    batches = list(open_reader(f"contract:{tmp_path}").interactions())
    faults = [(b.source.split("/")[1], *row) for b in batches for row in b.faults.select(POSITION, "reason").rows()]
    assert faults == [
        ("0.csv", 0, "empty_file"),
        ("2.csv.gz", 0, "truncated_file"),
        ("4.parquet", 0, "unreadable_file"),
        ("5.parquet", 0, "empty_file"),
    ]
    assert sum(len(b.rows) for b in batches if b.source.endswith(("1.csv", "3.parquet"))) == 10


def test_synthetic_users_may_meet_items_again_for_a_lifetime(tmp_path):
    source = f"synthetic:{tmp_path}/s?users=3&items=15&events=3000&days=40&images=false&repeats=true"
    rows = pl.concat([batch.rows for batch in open_reader(source).interactions()])
    assert rows.group_by("user_id").len()["len"].to_list() == [1000] * 3
    assert rows.unique(["user_id", "item_id", "timestamp"]).height == 3000, "no event comes twice"
    assert rows["item_id"].n_unique() <= 15 and rows["timestamp"].n_unique() < 3000
    span = (rows["timestamp"].max() - rows["timestamp"].min()) / 86_400
    assert 30 < span <= 40
    with pytest.raises(DatasetError, match="options `users=1"):
        open_reader(f"synthetic:{tmp_path}/t?users=1&items=5&events=100000&days=2&repeats=true")


def test_what_is_drawn_at_once_does_not_grow_with_the_events(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "EVENTS_AT_ONCE", 200)
    for events in (1_000, 10_000):
        folder = tmp_path / str(events)
        config = SyntheticConfig(users=events // 100, items=15, events=events, images=False, repeats=True)
        write_synthetic(str(folder), config)
        sizes = [pl.read_parquet(f).height for f in (folder / "interactions").iterdir()]
        assert max(sizes) == 200 and sum(sizes) == events


def test_synthetic_writes_once_and_draws_images(tmp_path):
    from PIL import Image

    source = f"synthetic:{tmp_path}/s?users=20&items=15&events=200&seed=3&images=true"
    reader = open_reader(source)
    written = (tmp_path / "s" / "items.csv").stat().st_mtime_ns
    items, events = rows_of(reader.items()), rows_of(reader.interactions())
    assert reader.source == source and len(items) == 15 and 150 <= len(events) <= 250
    assert events.select("user_id", "item_id").is_unique().all()
    with Image.open((reader.folder / items["image_uri"][0]).open("rb")) as image:
        assert (
            image.size == (96, 128)
            and len(set(image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata())) >= 3
        )
    open_reader(source)
    assert (tmp_path / "s" / "items.csv").stat().st_mtime_ns == written
    other = open_reader(f"synthetic:{tmp_path}/t?users=20&items=15&events=200&seed=3&implicit=true&images=false")
    assert "value" not in rows_of(other.interactions()).columns and not (tmp_path / "t" / "images").exists()
    assert "{" not in items["description"].str.join("").item()
    (tmp_path / "s" / "synthetic.version").write_text("unfinished")
    assert write_synthetic(f"{tmp_path}/s", SyntheticConfig(users=5, items=5, events=9, images=False))
    with pytest.raises(DatasetError, match="options .users=many."):
        open_reader(f"synthetic:{tmp_path}/s?users=many")


def test_the_generator_leaves_the_files_of_others_alone(tmp_path):
    contract(tmp_path / "shop", "u,a,1,rating,4\n")
    with pytest.raises(DatasetError, match="holds files that the synthetic generator did not write: name an empty"):
        open_reader(f"synthetic:{tmp_path}/shop?users=5")
    assert (tmp_path / "shop" / "interactions.csv").exists() and not (tmp_path / "shop" / "interactions").exists()
