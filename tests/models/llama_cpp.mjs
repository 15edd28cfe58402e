// Asks llama.cpp about a GGUF file, with its key/value cache in float32: what our own numbers are compared with.
// Usage: node llama_cpp.mjs JOB.json ANSWER.json
// The job: model, texts, prompts (token ids), numTokens. The answer, per text: token ids; per prompt: the logits of
// its every position, and the greedy continuation.
import { readFileSync, writeFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";

const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 2 });
const model = await llama.loadModel({ modelPath: job.model, gpuLayers: 0 });
const context = await model.createContext({
  contextSize: Math.max(16, ...job.prompts.map((prompt) => prompt.length + job.numTokens + 1)),
  experimentalKvCacheKeyType: "F32",
  experimentalKvCacheValueType: "F32",
  flashAttention: false,
});
const sequence = context.getSequence();

async function logitsOf(prompt) {
  await sequence.clearHistory();
  const answers = await sequence.controlledEvaluate(prompt.map((token) => [token, { generateNext: { logits: true } }]));
  return answers.map((answer) => {
    const logits = new Array(answer.next.logits.size);
    for (const [token, logit] of answer.next.logits) logits[token] = logit;
    return logits;
  });
}

async function continueGreedily(prompt) {
  await sequence.clearHistory();
  const tokens = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    if (tokens.push(token) >= job.numTokens) break;
  }
  return tokens;
}

const answer = { tokens: job.texts.map((text) => [...model.tokenize(text, true)]), logits: [], continuations: [] };
for (const prompt of job.prompts) {
  answer.logits.push(await logitsOf(prompt));
  answer.continuations.push(await continueGreedily(prompt));
}
writeFileSync(process.argv[3], JSON.stringify(answer));
process.exit(0);
