;; memory64: a 64-bit memory grown to 5 GiB, touched below, across and above the 4 GiB line.
;; Exit code: 0, 2 if it can't grow that far (too little guest memory), other codes name the check that failed.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") i64 1)
  (func $need (param $ok i32) (param $code i32)
    (if (i32.eqz (local.get $ok)) (then (call $exit (local.get $code)))))
  (func (export "_start") (local $at i64)
    (call $need (i64.ne (memory.grow (i64.const 81919)) (i64.const -1)) (i32.const 2))
    (call $need (i64.eq (memory.size) (i64.const 81920)) (i32.const 3))
    ;; one word per 64 MiB: its own address
    (loop $fill
      (i64.store (local.get $at) (i64.xor (local.get $at) (i64.const 0x5bd1e995)))
      (local.set $at (i64.add (local.get $at) (i64.const 0x4000000)))
      (br_if $fill (i64.lt_u (local.get $at) (i64.const 0x140000000))))
    (local.set $at (i64.const 0))
    (loop $check
      (call $need
        (i64.eq (i64.load (local.get $at)) (i64.xor (local.get $at) (i64.const 0x5bd1e995))) (i32.const 4))
      (local.set $at (i64.add (local.get $at) (i64.const 0x4000000)))
      (br_if $check (i64.lt_u (local.get $at) (i64.const 0x140000000))))
    ;; a word across the 4 GiB line, read in two halves
    (i64.store (i64.const 0xfffffffc) (i64.const 0x1122334455667788))
    (call $need (i32.eq (i32.load (i64.const 0xfffffffc)) (i32.const 0x55667788)) (i32.const 5))
    (call $need (i32.eq (i32.load (i64.const 0x100000000)) (i32.const 0x11223344)) (i32.const 6))
    (memory.fill (i64.const 0xffff0000) (i32.const 0xab) (i64.const 0x20000))
    (call $need (i32.eq (i32.load8_u (i64.const 0x10000ffff)) (i32.const 0xab)) (i32.const 7))
    (memory.copy (i64.const 0x130000000) (i64.const 0xffff0000) (i64.const 0x20000))
    (call $need (i32.eq (i32.load8_u (i64.const 0x13001ffff)) (i32.const 0xab)) (i32.const 8))
    (call $need (i32.eq (i32.load8_u (i64.const 0x130020000)) (i32.const 0)) (i32.const 9))))
