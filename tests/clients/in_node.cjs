// The `ollama` and `openai` packages of npm at one address: node in_node.cjs FOLDER_OF_NODE_MODULES URL
const { createRequire } = require("node:module");
const path = require("node:path");

const [folder, url] = process.argv.slice(2);
const bring = createRequire(path.join(path.resolve(folder), "x.js"));
const { Ollama } = bring("ollama");
const { OpenAI } = bring("openai");

const hello = [{ role: "user", content: "the small node sends the ready model" }];
const parameters = { type: "object", properties: { town: { type: "string" } }, required: ["town"] };
const tools = [{ type: "function", function: { name: "weather", description: "of a town", parameters } }];
const texts = Array.from({ length: 60 }, (_, number) => `text number ${number}`);

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return [error.name, error.status_code ?? error.status, error.message];
  }
  throw new Error("no error came");
}

async function ollama(found) {
  const client = new Ollama({ host: url });
  const asked = { model: "llama3.2", messages: hello, options: { num_predict: 9 } };
  const whole = await client.chat(asked);
  found["ollama chat"] = [whole.message.content, whole.done_reason, whole.eval_count];
  const parts = [];
  for await (const part of await client.chat({ ...asked, stream: true })) parts.push(part.message.content);
  found["ollama stream"] = parts;
  found["ollama generate"] = (await client.generate({ model: "llama3.2", prompt: "x" })).response;
  const called = await client.chat({ model: "llama3.2", messages: hello, tools });
  found["ollama tools"] = called.message.tool_calls.map((call) => call.function);
  found["ollama structured"] = (await client.chat({ model: "llama3.2", messages: hello, format: parameters })).message.content;
  found["ollama embeddings"] = (await client.embed({ model: "nomic-embed-text", input: texts })).embeddings;
  found["ollama models"] = (await client.list()).models.map((model) => model.name).sort();
  found["ollama show"] = (await client.show({ model: "llama3.2" })).details;
  found["ollama version"] = await client.version();
  found["ollama unknown model"] = await refusal(() => client.chat({ model: "nope", messages: hello }));
  found["ollama bad request"] = await refusal(() => client.chat({ model: "", messages: hello }));
  const stopped = [];
  const stream = await client.chat({ model: "endless", messages: hello, stream: true });
  try {
    for await (const part of stream) {
      stopped.push(part.message.content);
      if (stopped.length === 3) stream.abort();
    }
  } catch (error) {
    stopped.push(error.name);
  }
  found["ollama abort"] = [stopped.slice(0, 3), stopped.at(-1)];
}

async function openai(found) {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
  const asked = { model: "llama3.2", messages: hello, max_tokens: 9 };
  const whole = await client.chat.completions.create(asked);
  found["openai chat"] = [whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage];
  const parts = [];
  for await (const part of await client.chat.completions.create({ ...asked, stream: true })) {
    parts.push(part.choices[0]?.delta?.content ?? "");
  }
  found["openai stream"] = parts;
  const called = await client.chat.completions.create({ model: "llama3.2", messages: hello, tools });
  found["openai tools"] = called.choices[0].message.tool_calls.map((call) => call.function);
  const embedded = await client.embeddings.create({ model: "nomic-embed-text", input: texts });
  found["openai embeddings"] = embedded.data.map((row) => row.embedding);
  found["openai unknown model"] = await refusal(() => client.chat.completions.create({ ...asked, model: "nope" }));
}

(async () => {
  const found = {};
  await ollama(found);
  await openai(found);
  console.log(JSON.stringify(found));
})();
