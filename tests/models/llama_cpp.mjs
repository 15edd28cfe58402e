// Asks llama.cpp about GGUF files, with its key/value cache in float32: what our own numbers are compared with.
// Usage: node llama_cpp.mjs JOBS.json ANSWERS.json
// A job: model, texts, prompts (token ids), numTokens. Its answer, per text: token ids; per prompt: the logits of its
// every position, and the greedy continuation.
import { readFileSync, writeFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";

const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 2 });

async function logitsOf(sequence, prompt) {
  await sequence.clearHistory();
  const wanted = prompt.map((token) => [token, { generateNext: { logits: true } }]);
  return (await sequence.controlledEvaluate(wanted)).map(({ next }) => {
    const logits = new Array(next.logits.size);
    for (const [token, logit] of next.logits) logits[token] = logit;
    return logits;
  });
}

async function continueGreedily(sequence, prompt, numTokens) {
  await sequence.clearHistory();
  const tokens = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    if (tokens.push(token) >= numTokens) break;
  }
  return tokens;
}

async function answer({ model: modelPath, texts, prompts, numTokens }) {
  const model = await llama.loadModel({ modelPath, gpuLayers: 0, vocabOnly: prompts.length === 0 });
  const found = { tokens: texts.map((text) => [...model.tokenize(text, true)]), logits: [], continuations: [] };
  if (prompts.length) {
    const context = await model.createContext({
      contextSize: Math.max(...prompts.map((prompt) => prompt.length)) + numTokens + 1,
      experimentalKvCacheKeyType: "F32",
      experimentalKvCacheValueType: "F32",
      flashAttention: false,
    });
    const sequence = context.getSequence();
    for (const prompt of prompts) {
      found.logits.push(await logitsOf(sequence, prompt));
      found.continuations.push(await continueGreedily(sequence, prompt, numTokens));
    }
    await context.dispose();
  }
  await model.dispose();
  return found;
}

const answers = [];
for (const job of JSON.parse(readFileSync(process.argv[2], "utf8"))) answers.push(await answer(job));
writeFileSync(process.argv[3], JSON.stringify(answers));
process.exit(0);
