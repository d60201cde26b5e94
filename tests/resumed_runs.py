"""Lives of runs that go on: rows that their user edits, a provider that knows what was asked."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from batch_llm.exceptions import ContentFilteredError
from batch_llm.inputs import blocks, parquet
from batch_llm.outputs import notes
from batch_llm.providers.base import Outcome
from batch_llm.runs import passing
from batch_llm.stores import SqliteLedger

PROMPT = "Say: {{ text }}"
USAGE = {"input_tokens": 2, "output_tokens": 1, "total_tokens": 3}


def make_small(patch):
    """Make blocks, parts and pages so small that a few rows have many of them."""
    patch.setattr(blocks, "RECORDS", 4)
    patch.setattr(parquet, "_ROWS_AT_ONCE", 3)
    patch.setattr(notes, "_ROWS", 3)
    patch.setattr(passing, "_PAGE", 5)
    patch.setattr(passing, "_MOST", 12)
    patch.setattr(passing, "_ROWS_AT_ONCE", 3)
    patch.setenv("OPENAI_API_KEY", "none")


class World:
    """Answers by what is asked, and knows what was."""

    def __init__(self):
        self.asked = Counter()

    async def call(self, item, attempt):
        text = str(item.request.messages[-1].content)
        self.asked[item.item_id, text, item.request.settings.temperature] += 1
        await asyncio.sleep(0)
        if "odd" in text and item.request.settings.temperature is None:
            return Outcome(error=ContentFilteredError("odd"), usage=USAGE)
        return Outcome(f"{text} is known", USAGE, model="nobody")


class Life:
    """The rows of a run, as a user's file has them."""

    def __init__(self, shape, dice):
        self.name, self.dice, self.number = shape, dice, 0
        self.rows = []
        self.ends_line = True
        self.add(0, dice.randint(1, 30))

    def new(self):
        self.number += 1
        dice = self.dice
        text = dice.choice(["one", "odd", "two\nlines", 'quo"te', "ü€", "a,b", ""])
        if self.name in {"plain.txt", "rows.tsv"}:
            text = text.replace("\n", " ").replace('"', "")
        return {
            "id": f"r{self.number}",
            "text": f"{text}{dice.randint(0, 99)}",
            "label": dice.choice("xy"),
        }

    def add(self, place, count):
        self.rows[place:place] = [self.new() for _ in range(count)]

    def edit(self):
        """Do something that users do to their files."""
        dice, rows = self.dice, self.rows
        what = dice.choice(
            [
                "change",
                "label",
                "delete",
                "insert",
                "append",
                "reorder",
                "move",
                "double",
                "longer",
                "end",
                "no",
            ]
        )
        if not rows:
            what = "append"
        place = dice.randrange(len(rows) or 1)
        if what == "change":
            rows[place] = rows[place] | {"text": f"changed {dice.randint(0, 9)}"}
        elif what == "label":
            rows[place] = rows[place] | {"label": dice.choice("abc")}
        elif what == "delete":
            del rows[place : place + dice.randint(1, 5)]
        elif what == "insert":
            self.add(place, dice.randint(1, 5))
        elif what == "append":
            self.add(len(rows), dice.randint(1, 9))
        elif what == "reorder":
            dice.shuffle(rows)
        elif what == "move":
            rows[:] = rows[place:] + rows[:place]
        elif what == "double":
            rows.insert(dice.randrange(len(rows) + 1), dict(rows[place]))
        elif what == "longer":  # and the last line may have had no end
            rows[-1] = rows[-1] | {"text": rows[-1]["text"] + "!"}
        elif what == "end":
            self.ends_line = not self.ends_line
        if not rows:
            self.add(0, 3)

    def write(self, path):
        rows = self.rows
        if self.name.endswith("parquet"):
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
            return
        if self.name.endswith(("csv", "tsv")):
            file = io.StringIO()
            tab = "\t" if self.name.endswith("tsv") else ","
            table = csv.writer(file, delimiter=tab, lineterminator="\n")
            named = (
                rows
                if self.name != "unnamed.csv"
                else [{name: value for name, value in row.items() if name != "id"} for row in rows]
            )
            table.writerow(named[0].keys())
            table.writerows(row.values() for row in named)
            text = file.getvalue()
        elif self.name == "plain.txt":
            text = "".join(f"{row['text']}\n" for row in rows)
        elif self.name == "prompts.jsonl":
            text = "".join(
                json.dumps({"id": row["id"], "prompt": row["text"], "label": row["label"]}) + "\n"
                for row in rows
            )
        else:
            text = "".join(f"{json.dumps(row)}\n" for row in rows)
        path.write_bytes((text if self.ends_line else text.removesuffix("\n")).encode())


def unsettle(folder, numbers):
    """Make items pending, as those of a killed run are."""
    with SqliteLedger(folder / "ledger.sqlite") as ledger:
        wanted = [(number,) for number in numbers]
        ledger._exclusively(
            lambda one: one.executemany(
                "UPDATE items SET state = 'pending' "
                "WHERE number = ? AND state IN ('done', 'failed')",
                wanted,
            )
        )
