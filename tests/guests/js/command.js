// The JavaScript guest: the steps of rust/probe.rs in a component made by componentize-js. The engine has console
// and timers of its own; files and sockets are WASI's, called as they are.
import { getArguments, getEnvironment } from "wasi:cli/environment@0.2.10";
import { exit } from "wasi:cli/exit@0.2.10";
import { getStdin } from "wasi:cli/stdin@0.2.10";
import { getStdout } from "wasi:cli/stdout@0.2.10";
import { getDirectories } from "wasi:filesystem/preopens@0.2.10";
import { instanceNetwork } from "wasi:sockets/instance-network@0.2.10";
import { createTcpSocket } from "wasi:sockets/tcp-create-socket@0.2.10";

const text = (bytes) => new TextDecoder().decode(bytes);
const bytes = (text) => new TextEncoder().encode(text);
const inRoot = (path) => [getDirectories()[0][0], path.replace(/^\//, "") || "."];
// What WASI refused is thrown with the error as payload.
const refusal = (error) => (error.payload === "no-entry" ? "NotFound" : String(error.payload ?? error));

// The end of a stream is an error of its own.
function* pieces(stream) {
  for (;;) {
    try {
      yield stream.blockingRead(4096n);
    } catch (error) {
      if (error.payload?.tag === "closed") return;
      throw error;
    }
  }
}

function read(path) {
  const [root, name] = inRoot(path);
  const file = root.openAt({ symlinkFollow: true }, name, {}, { read: true });
  let all = "";
  for (const piece of pieces(file.readViaStream(0n))) all += text(piece);
  return `[${all}]`;
}

function write(path, content) {
  const [root, name] = inRoot(path);
  const file = root.openAt({ symlinkFollow: true }, name, { create: true, truncate: true }, { write: true });
  file.writeViaStream(0n).blockingWriteAndFlush(bytes(content));
  return "ok";
}

function list(path) {
  const [root, name] = inRoot(path);
  const entries = root.openAt({}, name, { directory: true }, { read: true }).readDirectory();
  const names = [];
  for (let entry; (entry = entries.readDirectoryEntry()); ) names.push(entry.name);
  return names.sort().join(" ");
}

// Echoes what one client sends.
function listen(address) {
  const [host, port] = address.split(":");
  const socket = createTcpSocket("ipv4");
  socket.startBind(instanceNetwork(), { tag: "ipv4", val: { port: Number(port), address: host.split(".").map(Number) } });
  socket.finishBind();
  socket.startListen();
  socket.finishListen();
  console.log("listening");
  socket.subscribe().block();
  const [client, input, output] = socket.accept();
  for (const piece of pieces(input)) output.blockingWriteAndFlush(piece);
  client.shutdown("both");
}

const steps = {
  hello: () => console.log("hello from wasm (javascript)"),
  args: () => getArguments().forEach((arg, i) => console.log(`arg ${i} [${arg}]`)),
  env: () => getEnvironment().forEach(([key, value]) => console.log(`env [${key}=${value}]`)),
  exit: (code) => exit(code === "0" ? { tag: "ok" } : { tag: "err" }),
  read: (path) => said("read", path, () => read(path)),
  write: (path, content) => said("write", path, () => write(path, content)),
  list: (path) => said("list", path, () => list(path)),
  cat: () => {
    const out = getStdout();
    for (const piece of pieces(getStdin())) out.blockingWriteAndFlush(piece);
  },
  clock: () => console.log(`realtime ${Math.floor(Date.now() / 1000)}`),
  listen,
};

function said(step, path, job) {
  let result;
  try {
    result = job();
  } catch (error) {
    result = refusal(error);
  }
  console.log(`${step} ${path}: ${result}`);
}

export const run = {
  run() {
    const [, step = "hello", ...rest] = getArguments();
    if (!(step in steps)) {
      console.error(`probe: unknown step ${step}`);
      throw undefined; // run returns its error
    }
    steps[step](...rest);
  },
};
