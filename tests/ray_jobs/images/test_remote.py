"""Fetching against real servers, and against every way of naming an address that is none of the public's."""

import ipaddress
import socket

import pytest

from ray_jobs.images import addresses
from ray_jobs.images.addresses import allowed, is_public
from ray_jobs.images.limits import ImageLimits, RemoteRule
from ray_jobs.images.reasons import ImageRefusedError
from ray_jobs.images.remote import GIVE_UP_HOST, RemoteFetcher
from tests.ray_jobs.images.hostile import JPEG, PNG
from tests.ray_jobs.images.image_server import ImageServer


@pytest.fixture
def server():
    with ImageServer() as running:
        yield running


def fetcher(server, **changes):
    rule = {"hosts": ("*",), "networks": ("127.0.0.0/8", "::1/128"), "ports": (80, server.port), "fetch_seconds": 20.0}
    return RemoteFetcher(RemoteRule(**(rule | changes)), ImageLimits(max_bytes=3 * 2**20))


def refusal(made, url):
    with pytest.raises(ImageRefusedError) as found:
        made.fetch(url)
    return found.value


def test_an_image_is_fetched_and_then_only_asked_for(server):
    made = fetcher(server)
    assert made.fetch(server.url("jpeg/a b?x=ü&y=1")) == (JPEG, 'etag:"v1"')
    assert made.fetch(server.url("jpeg/a"), 'etag:"v1"') == (None, 'etag:"v1"')
    server.etag = '"v2"'
    assert made.fetch(server.url("jpeg/a"), 'etag:"v1"') == (JPEG, 'etag:"v2"')
    server.etag = ""
    assert made.fetch(server.url("jpeg/a")) == (JPEG, "")
    assert server.asked[0][0] == "/jpeg/a%20b?x=%C3%BC&y=1"


@pytest.mark.parametrize("etag", ['"v\xe9"', '"v\t1"'])
def test_an_etag_that_cannot_be_sent_back_counts_as_none(server, etag):
    server.etag = etag
    assert fetcher(server).fetch(server.url("jpeg/a")) == (JPEG, "")
    assert fetcher(server).fetch(server.url("jpeg/a"), f"etag:{etag}") == (JPEG, "")
    assert {asked[1] for asked in server.asked} == {None}


def test_the_host_is_asked_by_its_name_and_its_type_is_not_believed(server):
    made = fetcher(server, hosts=("localhost",))
    assert made.fetch(server.url("lies", "localhost")).data == PNG
    assert server.asked[0][2] == f"localhost:{server.port}"


@pytest.mark.parametrize(
    "path, reason",
    [
        ("hang", "fetch_timeout"),
        ("drip", "fetch_timeout"),
        ("drip-headers", "fetch_timeout"),
        ("endless", "too_many_bytes"),
        ("short", "unreachable"),
        ("garbage", "unreachable"),
        ("status/404", "http_refused"),
        ("status/403", "http_refused"),
        ("status/204", "http_refused"),
        ("status/304", "http_refused"),
        ("status/429", "http_unavailable"),
        ("status/503", "http_unavailable"),
        ("hop/3", "too_many_redirects"),
        ("redirect/file:///etc/passwd", "unsupported_scheme"),
        ("redirect/gopher://127.0.0.1/", "unsupported_scheme"),
        ("redirect/http://user:pw@127.0.0.1/", "bad_address"),
        ("redirect/http://[oops/x", "bad_address"),
        ("redirect/http://user:pw@[oops/x", "bad_address"),
        ("redirect/http://169.254.169.254/latest/meta-data/", "private_address"),
        ("redirect/http://[::ffff:10.0.0.1]/", "private_address"),
        ("redirect/http://127.0.0.1:22/", "bad_address"),
    ],
)
def test_a_server_that_misbehaves_costs_its_image_only(server, path, reason):
    made = fetcher(server, fetch_seconds=0.6 if reason == "fetch_timeout" else 20.0)
    refused = refusal(made, server.url(path))
    assert refused.reason == reason, str(refused)
    assert refused.transient == (reason in {"fetch_timeout", "unreachable", "http_unavailable"})
    assert "pw" not in str(refused)
    # What was read of the endless one is bounded, too: sockets hold a few MiB.
    assert server.sent < 40
    assert made.fetch(server.url("jpeg/a")).data == JPEG


def test_redirects_are_followed_as_far_as_the_rule_says(server):
    assert fetcher(server).fetch(server.url("hop/2")).data == JPEG
    assert refusal(fetcher(server, max_redirects=0), server.url("hop/0")).reason == "too_many_redirects"


PRIVATE = [
    "127.0.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "127.1",
    "0.0.0.0",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "10.1.2.3",
    "172.16.0.9",
    "192.168.1.1",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "255.255.255.255",
    "localhost",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_no_private_address_is_connected_to_however_it_is_written(server, host):
    refused = refusal(fetcher(server, networks=()), server.url("jpeg/a", host))
    assert refused.reason == "private_address", str(refused)
    assert server.asked == []


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address):
    assert is_public(ipaddress.ip_address(address)) and allowed(ipaddress.ip_address(address), ())


def test_an_allowed_network_is_allowed_in_its_mapped_form_too():
    assert allowed(ipaddress.ip_address("::ffff:10.1.2.3"), ("10.1.0.0/16",))
    assert not allowed(ipaddress.ip_address("10.2.2.3"), ("10.1.0.0/16",))
    with pytest.raises(ValueError, match="write e.g. 10.1.0.0/16"):
        allowed(ipaddress.ip_address("10.2.2.3"), ("ten",))


@pytest.mark.parametrize(
    "hosts, host, taken",
    [
        ((), "localhost", False),
        (("localhost",), "LOCALHOST", True),
        (("localhost",), "localhost.evil.example", False),
        (("*.shop.example",), "shop.example.evil.example", False),
        (("cdn.shop.example",), "localhost", False),
        (("*",), "localhost", True),
    ],
)
def test_only_named_hosts_are_asked(server, hosts, host, taken):
    made = fetcher(server, hosts=hosts)
    if taken:
        assert made.fetch(server.url("jpeg/a", host)).data == JPEG
    else:
        assert refusal(made, server.url("jpeg/a", host)).reason == "remote_off"
        assert server.asked == []


def test_a_redirect_to_a_host_that_is_not_named_is_not_followed(server):
    made = fetcher(server, hosts=("127.0.0.1",))
    assert refusal(made, server.url(f"redirect/{server.url('jpeg/a', 'localhost')}")).reason == "remote_off"
    assert len(server.asked) == 1


def test_a_name_that_leads_elsewhere_a_moment_later_changes_nothing(server, monkeypatch):
    """DNS rebinding: the first look-up is public, the next would be this machine."""
    real, asked = socket.getaddrinfo, []

    def rebinding(host, port, *rest, **more):
        if host != "rebind.example":
            return real(host, port, *rest, **more)
        asked.append(host)
        address = "192.0.2.1" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", rebinding)
    made = fetcher(server, networks=("192.0.2.0/24",), fetch_seconds=0.5)
    assert refusal(made, server.url("jpeg/a", "rebind.example")).reason in ("fetch_timeout", "unreachable")
    assert asked == ["rebind.example"] and server.asked == [], "one look-up, and the connection went to its answer"
    assert refusal(made, server.url("jpeg/a", "rebind.example")).reason == "private_address"


def test_one_private_address_among_public_ones_is_enough(server, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *a, **k: found)
    assert refusal(fetcher(server, networks=()), "http://two.example/").reason == "private_address"


def test_a_resolver_that_hangs_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *a, **k: server.ended.wait(20))
    assert refusal(fetcher(server, fetch_seconds=0.3), "http://slow.example/").reason == "fetch_timeout"


def test_the_images_of_a_dead_host_are_not_waited_for_one_by_one(server):
    made = fetcher(server, fetch_seconds=0.2)
    for _ in range(GIVE_UP_HOST):
        assert refusal(made, server.url("hang")).reason == "fetch_timeout"
    before = len(server.asked)
    assert refusal(made, server.url("jpeg/a")).reason == "unreachable" and len(server.asked) == before


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x",
        "http://[::1",
        "http://host:port/",
        "http://u@h/",
        "http://a..b/",
        "http://" + "x" * 70 + "/",
    ],
)
def test_what_is_no_address_is_told(server, url):
    assert refusal(fetcher(server), url).reason in ("bad_address", "unreachable")
