"""NDCG@10, recomputed from files alone: python examples/check_ndcg.py recs.csv targets.csv (averaged within users first)."""

import csv
import math
import sys
from collections import defaultdict

recs, targets = (list(csv.DictReader(open(path, encoding="utf-8"))) for path in sys.argv[1:3])  # noqa: SIM115
key = "query" if "query" in recs[0] else "user_id"
rank = {(row[key], row["item_id"]): int(row["rank"]) for row in recs}
gain, ideal, by_user = defaultdict(float), defaultdict(int), defaultdict(list)
for row in targets:
    position = rank.get((row[key], row["item_id"]), 11)
    gain[row[key], row["user_id"]] += 1 / math.log2(position + 1) if position <= 10 else 0
    ideal[row[key], row["user_id"]] += 1
for (query, user), value in gain.items():
    best = sum(1 / math.log2(position + 2) for position in range(min(10, ideal[query, user])))
    by_user[user].append(value / best)
print(f"{sum(sum(values) / len(values) for values in by_user.values()) / len(by_user):.6f}")
