;; simd: 128-bit vectors: integer, floating point, saturating, shuffles, and in memory. Exit code 0, or the check that failed.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func $need (param $ok i32) (param $code i32)
    (if (i32.eqz (local.get $ok)) (then (call $exit (local.get $code)))))
  (func (export "_start") (local $i i32) (local $sum v128)
    (call $need
      (i32x4.all_true (i32x4.eq
        (i32x4.mul (v128.const i32x4 1 2 3 4) (v128.const i32x4 10 20 30 40))
        (v128.const i32x4 10 40 90 160)))
      (i32.const 1))
    (call $need
      (i8x16.all_true (i8x16.eq
        (i8x16.add_sat_u (i8x16.splat (i32.const 200)) (i8x16.splat (i32.const 100)))
        (i8x16.splat (i32.const 255))))
      (i32.const 2))
    (call $need
      (i64x2.all_true (f64x2.eq
        (f64x2.sqrt (v128.const f64x2 16 2.25)) (v128.const f64x2 4 1.5)))
      (i32.const 3))
    (call $need
      (i32.eq (i8x16.extract_lane_u 0
        (i8x16.shuffle 31 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
          (v128.const i8x16 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0)
          (v128.const i8x16 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 77)))
        (i32.const 77))
      (i32.const 4))
    ;; numbers 0..1023 in memory, summed four at a time, from an odd address
    (loop $fill
      (i32.store (i32.add (i32.const 3) (i32.shl (local.get $i) (i32.const 2))) (local.get $i))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $fill (i32.lt_u (local.get $i) (i32.const 1024))))
    (local.set $i (i32.const 3))
    (loop $add
      (local.set $sum (i32x4.add (local.get $sum) (v128.load (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 16)))
      (br_if $add (i32.lt_u (local.get $i) (i32.const 4099))))
    (call $need
      (i32.eq
        (i32.add
          (i32.add (i32x4.extract_lane 0 (local.get $sum)) (i32x4.extract_lane 1 (local.get $sum)))
          (i32.add (i32x4.extract_lane 2 (local.get $sum)) (i32x4.extract_lane 3 (local.get $sum))))
        (i32.const 523776))
      (i32.const 5))
    (call $need (i32.eq (i8x16.bitmask (v128.const i32x4 0x80 0 0x80000000 0)) (i32.const 0x801)) (i32.const 6))))
