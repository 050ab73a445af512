;; big-memories: two memories of 4 GiB each, one byte of every 2 MiB touched: 8 GiB in all.
;; Exit code: 0, 2 if a memory can't grow that far, 3 if a byte is wrong.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory $a (export "memory") 1)
  (memory $b 1)
  (func (export "_start") (local $at i32) (local $unit i32)
    (if (i32.eq (memory.grow $a (i32.const 65535)) (i32.const -1)) (then (call $exit (i32.const 2))))
    (if (i32.eq (memory.grow $b (i32.const 65535)) (i32.const -1)) (then (call $exit (i32.const 2))))
    (loop $fill
      (local.set $at (i32.shl (local.get $unit) (i32.const 21)))
      (i32.store $a (local.get $at) (local.get $unit))
      (i32.store $b (local.get $at) (i32.add (local.get $unit) (i32.const 5000)))
      (local.set $unit (i32.add (local.get $unit) (i32.const 1)))
      (br_if $fill (i32.lt_u (local.get $unit) (i32.const 2048))))
    (local.set $unit (i32.const 0))
    (loop $check
      (local.set $at (i32.shl (local.get $unit) (i32.const 21)))
      (if (i32.or
            (i32.ne (i32.load $a (local.get $at)) (local.get $unit))
            (i32.ne (i32.load $b (local.get $at)) (i32.add (local.get $unit) (i32.const 5000))))
        (then (call $exit (i32.const 3))))
      (local.set $unit (i32.add (local.get $unit) (i32.const 1)))
      (br_if $check (i32.lt_u (local.get $unit) (i32.const 2048))))))
