;; uncaught: an exception nobody catches ends the program like a trap.
(module
  (tag $lost)
  (func $thrower (throw $lost))
  (func (export "_start") (call $thrower)))
