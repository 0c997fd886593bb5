# SPDX-License-Identifier: Apache-2.0
"""What nft is told, and what it shows."""

from __future__ import annotations

from hypothesis import given

from tests.redirection.plans import OPTIONS
from ztunnel_py.redirection import nft_text
from ztunnel_py.redirection.plan import Family, Options, pod_plan

OTHERS = "table inet kube {\n\tchain output {\n\t\tjump istio-output\n\t}\n}\n"


def listed(tables: nft_text.Tables) -> str:
    """As `nft list ruleset` shows it, beside a table of others."""
    text = OTHERS
    for table, chains in tables.items():
        text += f"table {table} {{\n"
        for chain, lines in chains.items():
            text += f"\tchain {chain} {{\n"
            for line in lines:
                is_hook = line.startswith("type ")
                text += f"\t\t{line}; policy accept;\n" if is_hook else f"\t\t{line}\n"
            text += "\t}\n\n"
        text += "}\n"
    return text


@given(OPTIONS)
def test_what_is_shown_is_understood_beside_tables_of_others(options: Options) -> None:
    tables = nft_text.contents(pod_plan(options))

    assert nft_text.parse(listed(tables)) == tables
    assert not list(nft_text.differences(nft_text.parse(listed(tables)), tables))


@given(OPTIONS)
def test_every_transaction_takes_all_three_tables_away_first(options: Options) -> None:
    lines = nft_text.transaction(nft_text.contents(pod_plan(options))).splitlines()

    first = [
        f"{verb} table {table}" for table in nft_text.TABLES.values() for verb in ("add", "delete")
    ]
    assert lines[: len(first)] == first
    assert not [line for line in lines[len(first) :] if line.startswith("delete")]


@given(OPTIONS)
def test_rules_that_name_an_address_are_there_once_for_each_family(options: Options) -> None:
    plan = pod_plan(options)
    tables = nft_text.contents(plan)

    text = [line for chains in tables.values() for lines in chains.values() for line in lines]

    assert "daddr != 127.0.0.1" in "\n".join(text)
    of_ipv6 = [line for line in text if "ip6 " in line]
    assert len(of_ipv6) == (
        len([line for line in text if "ip " in line]) if Family.IPV6 in plan.families else 0
    )


def test_difference_of_a_set_in_a_table_of_ours_is_seen() -> None:
    wanted = nft_text.contents(pod_plan(Options()))
    found = nft_text.parse(
        listed(wanted).replace(
            "table inet istio-ambient-nat {\n",
            "table inet istio-ambient-nat {\n\tset strange {\n\t\ttype ipv4_addr\n\t}\n\n",
        )
    )

    (difference,) = nft_text.differences(found, wanted)

    assert str(difference) == "extra in inet istio-ambient-nat: chain set strange"


def test_releases_that_show_numbers_otherwise_mean_the_same() -> None:
    told = "meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111"
    shown = (
        "meta mark & 0x00000fff == 0x00000539 counter ct mark set ct mark & 0xfffff111 | 0x00000111"
    )

    assert nft_text.meaning(told) == nft_text.meaning(shown)
    assert nft_text.meaning(told) != nft_text.meaning(shown.replace("==", "!="))
