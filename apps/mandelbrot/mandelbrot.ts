// mandelbrot: an AssemblyScript program; floating point and text output. Prints the Mandelbrot set as a text picture and
// a checksum over all iteration counts. `nacre demo` runs it.
//
//   mandelbrot [WIDTH [ITERATIONS]]      default 78 columns, 2,000 iterations

const SHADES = " .:-=+*#%@";

/** Iterations until the point leaves the circle of radius 2, at most `limit`. */
function escape(cx: f64, cy: f64, limit: i32): i32 {
  let x: f64 = 0, y: f64 = 0, n: i32 = 0;
  while (n < limit) {
    const xx = x * x, yy = y * y;
    if (xx + yy > 4) break;
    y = 2 * x * y + cy;
    x = xx - yy + cx;
    n++;
  }
  return n;
}

/** A shade for an iteration count: logarithmic, and blank inside the set. */
function shade(n: i32, limit: i32): string {
  if (n >= limit) return "@";
  let level = 0;
  for (let rest = n; rest > 1 && level < SHADES.length - 2; rest >>= 1) level++;
  return SHADES.charAt(level);
}

const args = process.argv;
const width: i32 = args.length > 1 ? I32.parseInt(args[1]) : 78;
const limit: i32 = args.length > 2 ? I32.parseInt(args[2]) : 2000;
const height: i32 = width * 30 / 78;
let sum: u64 = 0;

for (let row = 0; row < height; row++) {
  let line = "";
  for (let column = 0; column < width; column++) {
    const cx = -2.2 + 3.2 * (<f64>column) / <f64>width;
    const cy = -1.2 + 2.4 * (<f64>row) / <f64>height;
    const n = escape(cx, cy, limit);
    sum = (sum ^ <u64>n) * 0x100000001b3;
    line += shade(n, limit);
  }
  console.log(line.trimEnd());
}
console.log("checksum " + sum.toString(16));
