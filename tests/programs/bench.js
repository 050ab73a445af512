// A JS benchmark with deterministic output: numbers, objects, strings, regular expressions, closures, typed arrays, BigInt, sorting.
let seed = 12345;
const random = () => (seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) / 4294967296;

function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

function nbody(steps) {
  const bodies = Array.from({ length: 5 }, () => ({ p: [random(), random(), random()], v: [0, 0, 0], m: 0.1 + random() }));
  for (let s = 0; s < steps; s++) {
    for (const a of bodies) for (const b of bodies) {
      if (a === b) continue;
      const d = b.p.map((x, i) => x - a.p[i]);
      const r = Math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + 0.01);
      for (let i = 0; i < 3; i++) a.v[i] += (0.001 * b.m * d[i]) / (r * r * r);
    }
    for (const a of bodies) for (let i = 0; i < 3; i++) a.p[i] += 0.001 * a.v[i];
  }
  return bodies.reduce((e, b) => e + b.m * (b.v[0] ** 2 + b.v[1] ** 2 + b.v[2] ** 2), 0).toFixed(12);
}

function sieve(n) {
  const composite = new Uint8Array(n);
  let count = 0;
  for (let i = 2; i < n; i++) {
    if (composite[i]) continue;
    count++;
    for (let j = i * 2; j < n; j += i) composite[j] = 1;
  }
  return count;
}

class Shape { area() { return 0; } }
class Circle extends Shape { constructor(r) { super(); this.r = r; } area() { return Math.PI * this.r * this.r; } }
class Square extends Shape { constructor(a) { super(); this.a = a; } area() { return this.a ** 2; } }

function shapes(n) {
  const all = [];
  for (let i = 0; i < n; i++) all.push(random() < 0.5 ? new Circle(random()) : new Square(random()));
  all.sort((x, y) => x.area() - y.area());
  return all.reduce((sum, s, i) => sum + s.area() * (i % 3), 0).toFixed(9);
}

function texts(n) {
  const words = new Map();
  let text = "";
  for (let i = 0; i < n; i++) text += String.fromCharCode(97 + Math.floor(random() * 4)) + (random() < 0.3 ? " " : "");
  for (const [word] of text.matchAll(/[ab]+c?/g)) words.set(word, (words.get(word) ?? 0) + 1);
  return [...words].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 4).map(([w, c]) => `${w}:${c}`).join(" ");
}

function factorial(n) { let f = 1n; for (let i = 2n; i <= n; i++) f *= i; return f; }

function errors(n) {
  let caught = 0;
  for (let i = 0; i < n; i++) try { if (i % 3) throw new RangeError(`no. ${i}`); null.x; } catch (e) { caught += e instanceof TypeError ? 2 : 1; }
  return caught;
}

function* counter(n) { for (let i = 0; i < n; i++) yield i; }

print("fib", fib(24));
print("nbody", nbody(500));
print("sieve", sieve(500000));
print("shapes", shapes(5000));
print("texts", texts(20000));
print("factorial", factorial(300n).toString(36).slice(0, 40));
print("errors", errors(20000));
print("generator", [...counter(50000)].reduce((a, b) => a + b));
print("json", JSON.stringify(JSON.parse(JSON.stringify({ a: [1, 2.5, null, "é\u2028"], b: { c: new Date(0), d: [..."héllo"] } }))));
Promise.all([1, 2, 3].map(async (x) => { await null; return x * 2; })).then((all) => print("async", all));
