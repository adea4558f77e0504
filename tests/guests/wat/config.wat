;; A command that succeeds if wasi:config has "hi" for "greeting".
(component
  (type $store (instance
    (type $cases (variant (case "upstream" string) (case "io" string)))
    (export "error" (type $error (eq $cases)))
    (export "get" (func (param "key" string) (result (result (option string) (error $error)))))))
  (import "wasi:config/store@0.2.0-rc.1" (instance $config (type $store)))
  (core module $memory
    (memory (export "memory") 1)
    (global $next (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (global.get $next))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (local.get $at)))
  (core instance $own (instantiate $memory))
  (core func $get (canon lower (func $config "get") (memory (core memory $own "memory")) (realloc (core func $own "realloc"))))
  (core module $main
    (import "host" "get" (func $get (param i32 i32 i32)))
    (import "host" "memory" (memory 1))
    (data (i32.const 0) "greeting")
    (func (export "run") (result i32)
      ;; The answer at 64: 0 for ok; at 68: 1 for some; at 72 and 76: where and how long.
      (call $get (i32.const 0) (i32.const 8) (i32.const 64))
      (if (i32.load8_u (i32.const 64)) (then (return (i32.const 1))))
      (if (i32.eqz (i32.load8_u (i32.const 68))) (then (return (i32.const 1))))
      (if (i32.ne (i32.load (i32.const 76)) (i32.const 2)) (then (return (i32.const 1))))
      (i32.ne (i32.load16_u (i32.load (i32.const 72))) (i32.const 0x6968))))
  (core instance $program (instantiate $main
    (with "host" (instance (export "get" (func $get)) (export "memory" (memory $own "memory"))))))
  (func $run (result (result)) (canon lift (core func $program "run")))
  (instance $cli (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $cli)))
