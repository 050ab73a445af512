"""What the CPython test runs: json, hashlib, re and a 100 MB bytearray, with output that depends on nothing else."""

import hashlib
import json
import math
import re
import sys
import zlib
from collections import Counter
from decimal import Decimal, getcontext

def documents(count):
    return [
        {"id": i, "name": f"item-{i * 7919 % 1009}", "tags": [f"t{i % k}" for k in (2, 3, 5)], "price": round(i * 1.1, 2),
         "nested": {"deep": [None, True, {"x": i ** 2}]}, "text": "äöü €" * (i % 4)}
        for i in range(count)
    ]

text = json.dumps(documents(3000), sort_keys=True)
again = json.loads(text)
assert json.dumps(again, sort_keys=True) == text
print("json", len(text), hashlib.sha256(text.encode()).hexdigest())

pattern = re.compile(r'"name": "item-(?P<number>\d+)".*?"price": (?P<price>\d+\.\d+)', re.S)
found = [(int(m["number"]), float(m["price"])) for m in pattern.finditer(text)]
print("re", len(found), sum(n for n, _ in found), f"{sum(p for _, p in found):.2f}")
print("re.sub", hashlib.md5(re.sub(r"t(\d)", r"<\1>", text).encode()).hexdigest())
print("words", Counter(re.findall(r"[a-z]+", text)).most_common(4))

block = bytearray(100 * 1000 * 1000)
for start in range(0, len(block), 1 << 20):
    block[start] = start >> 20 & 0xff
block[-1] = 0x5a
block[50_000_000:50_000_011] = b"in the middle"[:11]
print("bytearray", len(block), block.find(b"in the"), block.count(b"\0") + 0, hashlib.blake2b(block[::97], digest_size=16).hexdigest())
view = memoryview(block)
print("crc32", f"{zlib.crc32(view[40_000_000:60_000_000]):08x}", "sha1", hashlib.sha1(view[49_000_000:51_000_000]).hexdigest())
view.release()
block.extend(b"tail")
print("grown", len(block), bytes(block[-5:]))
del block

getcontext().prec = 60
print("decimal", Decimal(2).sqrt(), math.factorial(40) % 1_000_000_007)
try:
    {}["missing"]
except KeyError as error:
    print("caught", repr(error))

with open(sys.argv[1], encoding="utf-8") as source:
    lines = source.read().splitlines()
with open(sys.argv[2], "w", encoding="utf-8") as target:
    target.writelines(f"{number:4}: {line}\n" for number, line in enumerate(reversed(lines), 1))
print("lines", len(lines))
sys.exit(7)
