// Uploads what the server refuses, over and over, with Node's two clients, and counts how often they get to read why.
import http from "node:http";

const [url, runs, size] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const body = Buffer.alloc(size, "x");

async function byFetch() {
  const response = await fetch(url, { method: "POST", body });
  await response.text();
  return response.status;
}

function byRequest() {
  return new Promise((resolve, reject) => {
    const request = http.request(url, { method: "POST", agent: false, headers: { "content-length": size } }, (response) => {
      response.resume();
      response.on("end", () => resolve(response.statusCode));
      response.on("error", reject);
    });
    request.on("error", reject);
    request.end(body);
  });
}

for (const [client, upload] of [["node fetch", byFetch], ["node http", byRequest]]) {
  const outcomes = {};
  for (let run = 0; run < runs; run++) {
    const outcome = await upload().catch((error) => error.cause?.code ?? error.code ?? error.message);
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  }
  console.log(JSON.stringify({ client, outcomes }));
}
