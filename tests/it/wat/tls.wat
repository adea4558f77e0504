;; A command that makes a connector of wasi:tls and lets it go; the types of the draft of 0.2 are only there.
(component
  (type $client-shape (instance
    (export "connector" (type $connector (sub resource)))
    (export "[constructor]connector" (func (result (own $connector))))))
  (import "wasi:tls/client@0.3.0-draft" (instance $client (type $client-shape)))
  (type $types-shape (instance
    (export "client-connection" (type $connection (sub resource)))
    (export "[method]client-connection.close-output" (func (param "self" (borrow $connection))))))
  (import "wasi:tls/types@0.2.0-draft" (instance $types (type $types-shape)))
  (alias export $client "connector" (type $connector))
  (core func $new (canon lower (func $client "[constructor]connector")))
  (core func $drop (canon resource.drop $connector))
  (core module $main
    (import "host" "new" (func $new (result i32)))
    (import "host" "drop" (func $drop (param i32)))
    (func (export "run") (result i32)
      (call $drop (call $new))
      (i32.const 0)))
  (core instance $program (instantiate $main
    (with "host" (instance (export "new" (func $new)) (export "drop" (func $drop))))))
  (func $run (result (result)) (canon lift (core func $program "run")))
  (instance $cli (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $cli)))
