;; no-start: a valid module that is not a command. Nacre must refuse it and name `_start`.
(module (func (export "run")))
