;; mix: a compute-bound program: a pseudo-random walk over 4 MiB with loads, stores, multiplications and calls. It makes no
;; system call until it prints its 8-byte checksum.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 65)
  (func $step (param $x i64) (result i64)
    (i64.add (i64.mul (local.get $x) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
  (func (export "_start") (local $x i64) (local $sum i64) (local $left i32) (local $at i32)
    (local.set $x (i64.const 42))
    (local.set $left (i32.const 100000000))
    (loop $next
      (local.set $x (call $step (local.get $x)))
      ;; 65536..65536+4 MiB, 8-byte aligned.
      (local.set $at
        (i32.add (i32.const 65536)
          (i32.and (i32.wrap_i64 (i64.shr_u (local.get $x) (i64.const 33))) (i32.const 0x3ffff8))))
      (local.set $sum
        (i64.add (i64.rotl (local.get $sum) (i64.const 5)) (i64.load (local.get $at))))
      (i64.store (local.get $at) (i64.xor (local.get $x) (local.get $sum)))
      (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
    (i64.store (i32.const 16) (local.get $sum))
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 8))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
