;; needs-memory: asks for 1 GiB from the start, with data at its end, and touches all of it.
(module
  (memory (export "memory") 16384)
  (data (i32.const 1073741800) "the end")
  (func (export "_start") (local $at i32)
    (loop $touch
      (i32.store (local.get $at) (i32.const 1))
      (local.set $at (i32.add (local.get $at) (i32.const 4096)))
      (br_if $touch (i32.lt_u (local.get $at) (i32.const 1073741824))))))
