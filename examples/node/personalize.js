// Personalize a user and download their bundle, with @grpc/grpc-js and the .proto files alone.
//
//   node personalize.js <server> <items.jsonl> <user> <folder>
//
// Shows what every client of Pocketune needs: a request id for each change, retries through the
// service config, waiting for an operation with its progress, and a download that goes on where the
// stream broke. POCKETUNE_API_KEY is sent if it is set. POCKETUNE_BREAK_AFTER=<bytes> breaks the
// first stream on purpose, to see that the rest is fetched and nothing twice.

import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, readFile, rename, stat, unlink } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const RECIPE = "executorch-xnnpack-fp32";
const TASK = "LaMP_4"; // headlines. A task of your own: any name, and `kind` and `prompt` below
const TRIES = 5;
const STREAM_MS = 3_600_000;

const here = path.dirname(fileURLToPath(import.meta.url));
const google = path.dirname(createRequire(import.meta.url).resolve("google-proto-files/package.json"));
const names = ["users", "profiles", "bases", "bundles", "operations"];
const definition = protoLoader.loadSync(
  ["google/longrunning/operations.proto", ...names.map((name) => `protos/v1/${name}.proto`)],
  {
    includeDirs: [path.join(here, "..", ".."), google],
    longs: Number,
    enums: String,
    defaults: true,
    json: true, // unpacks google.protobuf.Any, which operations carry
  },
);
const api = grpc.loadPackageDefinition(definition);
const { pocketune, google: { longrunning } } = api;

const serviceConfig = {
  methodConfig: [
    {
      name: [{}], // every method: changing calls carry a request id, so a retry is safe
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.2s",
        maxBackoff: "5s",
        backoffMultiplier: 3,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};

function connect(server) {
  const metadata = new grpc.Metadata();
  if (process.env.POCKETUNE_API_KEY) {
    metadata.set("authorization", `Bearer ${process.env.POCKETUNE_API_KEY}`);
  }
  const options = { "grpc.service_config": JSON.stringify(serviceConfig) };
  // Beyond this machine: grpc.credentials.createSsl(), or the key travels in clear text.
  const credentials = grpc.credentials.createInsecure();
  const make = (Service) => {
    const stub = new Service(server, credentials, options);
    const call = (method, request) =>
      promisify(stub[method].bind(stub))(request, metadata, { deadline: Date.now() + 60_000 });
    return { stub, call, metadata };
  };
  return {
    users: make(pocketune.v1.UserService),
    profiles: make(pocketune.v1.ProfileService),
    bases: make(pocketune.v1.BaseService),
    bundles: make(pocketune.v1.BundleService),
    operations: make(longrunning.Operations),
  };
}

// The result of `make`, or undefined if the service answers with the status `code`.
async function unless(code, make) {
  try {
    return await make();
  } catch (error) {
    if (error.code !== code) throw error;
    return undefined;
  }
}

async function finished(client, operation) {
  let shown = "";
  while (!operation.done) {
    operation = await client.operations.call("waitOperation", {
      name: operation.name,
      timeout: { seconds: 1, nanos: 0 },
    });
    const { stage, progress } = operation.metadata;
    const line = `${stage} ${Math.round(progress * 100)}%`;
    if (line !== shown) console.log(line);
    shown = line;
  }
  if (operation.error) throw new Error(`${operation.name}: ${operation.error.message}`);
  return operation.response;
}

// One stream of items. After a break, GetUpload tells where the next stream begins.
async function upload(client, parent, items) {
  const requestId = randomUUID();
  for (let tries = TRIES; ; tries -= 1) {
    const reached = await unless(grpc.status.NOT_FOUND, () =>
      client.profiles.call("getUpload", { parent, requestId }),
    );
    try {
      return await append(client, parent, requestId, items, reached ? reached.nextIndex : 0);
    } catch (error) {
      if (tries === 1 || error.code !== grpc.status.UNAVAILABLE) throw error;
      await sleep(500);
    }
  }
}

function append(client, parent, requestId, items, start) {
  return new Promise((resolve, reject) => {
    const { stub, metadata } = client.profiles;
    const answered = (error, answer) => (error ? reject(error) : resolve(answer));
    const stream = stub.appendItems(metadata, { deadline: Date.now() + STREAM_MS }, answered);
    for (let first = start; first < items.length; first += 100) {
      const batch = items.slice(first, first + 100);
      stream.write({ parent, requestId, firstIndex: first, items: batch });
    }
    stream.end();
  });
}

// Bring one file; what is in its .part file is not fetched again.
async function download(client, name, file, folder, breakAfter) {
  const target = path.join(folder, file.path);
  if (path.relative(folder, target).startsWith("..")) throw new Error(`strange path ${file.path}`);
  await mkdir(path.dirname(target), { recursive: true });
  const part = `${target}.part`;
  let broken = 0;
  for (;;) {
    const offset = (await unless("ENOENT", () => stat(part)))?.size ?? 0;
    try {
      await receive(client, { name, file: file.path, offset }, part, broken ? 0 : breakAfter);
      break;
    } catch (error) {
      const passing = [grpc.status.UNAVAILABLE, grpc.status.CANCELLED, grpc.status.INTERNAL];
      broken += 1;
      if (broken === TRIES || !passing.includes(error.code)) throw error;
      const now = (await stat(part)).size;
      console.log(`${file.path}: the stream broke at ${now} of ${file.sizeBytes} bytes`);
    }
  }
  if ((await sha256(part)) !== file.sha256) {
    await unlink(part);
    throw new Error(`${file.path}: what arrived has another sha256`);
  }
  await rename(part, target);
  return broken;
}

async function receive(client, request, part, breakAfter) {
  const { stub, metadata } = client.bundles;
  const out = await open(part, "a");
  const stream = stub.downloadBundle(request, metadata, { deadline: Date.now() + STREAM_MS });
  let received = 0;
  try {
    for await (const chunk of stream) {
      await out.write(chunk.data);
      received += chunk.data.length;
      if (breakAfter && received >= breakAfter) stream.cancel();
    }
  } finally {
    await out.close();
  }
}

async function sha256(file) {
  const hash = createHash("sha256");
  for await (const block of createReadStream(file)) hash.update(block);
  return hash.digest("hex");
}

async function main(server, source, userId, folder) {
  const client = connect(server);
  const { ALREADY_EXISTS, NOT_FOUND } = grpc.status;
  const user = `users/${userId}`;
  const profile = `${user}/profiles/${TASK}`;
  const base = "bases/pocket";

  await unless(ALREADY_EXISTS, () =>
    client.users.call("createUser", { userId, requestId: randomUUID() }),
  );
  await unless(ALREADY_EXISTS, () =>
    client.profiles.call("createProfile", {
      parent: user,
      profileId: TASK,
      // { kind: "TASK_KIND_GENERATION", prompt: "Write a subject for this mail: {input}" }
      profile: { language: "en" },
      requestId: randomUUID(),
    }),
  );
  const found = await unless(NOT_FOUND, () => client.bases.call("getBase", { name: base }));
  if (!found) {
    const request = { baseId: "pocket", base: { source: "pocket" }, requestId: randomUUID() };
    await finished(client, await client.bases.call("createBase", request));
  }

  const lines = (await readFile(source, "utf8")).split("\n").filter(Boolean);
  const stored = await upload(client, profile, lines.map((line) => JSON.parse(line)));
  console.log(`${stored.profile.itemCount} items`);

  const operation = await client.profiles.call("personalizeProfile", {
    name: profile,
    base,
    recipe: RECIPE,
    augment: { perReal: Number(process.env.POCKETUNE_PER_REAL ?? 2) },
    train: { epochs: Number(process.env.POCKETUNE_EPOCHS ?? 6), learningRate: 0.002 },
    requestId: randomUUID(),
  });
  const { bundle, parityReport } = await finished(client, operation);
  console.log(`${bundle.name}: parity ${parityReport.passed ? "passed" : "FAILED"}`);

  let broken = 0;
  const breakAfter = Number(process.env.POCKETUNE_BREAK_AFTER ?? 0);
  for (const file of bundle.files) {
    const wanted = file.sizeBytes > breakAfter && !broken ? breakAfter : 0;
    broken += await download(client, bundle.name, file, folder, wanted);
  }
  console.log(`${bundle.files.length} files in ${folder}, ${broken} streams resumed`);
  return parityReport.passed ? 0 : 7;
}

if (process.argv.length !== 6) {
  console.error("usage: node personalize.js <server> <items.jsonl> <user> <folder>");
  process.exit(2);
}
try {
  process.exit(await main(...process.argv.slice(2)));
} catch (error) {
  console.error(`Error: ${error.message}`);
  process.exit(1);
}
