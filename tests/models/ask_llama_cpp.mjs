// Asks llama.cpp about GGUF files, with its key/value cache in float32: what our own numbers are compared with.
// Usage: node ask_llama_cpp.mjs JOBS.json ANSWERS.json
// A job: model, texts, prompts (token ids), numTokens, positions ("all" or "last"). Its answer, per text: token ids; per
// prompt: the logits of those positions, and the greedy continuation.
import { readFileSync, writeFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";

const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1 });

async function logitsOf(sequence, prompt, positions) {
  await sequence.clearHistory();
  const isAsked = (at) => positions === "all" || at === prompt.length - 1;
  const wanted = prompt.map((token, at) => (isAsked(at) ? [token, { generateNext: { logits: true } }] : token));
  const found = await sequence.controlledEvaluate(wanted);
  return found.filter(Boolean).map(({ next }) => {
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

async function answer({ model: modelPath, texts, prompts, numTokens, positions }) {
  const model = await llama.loadModel({ modelPath, gpuLayers: 0, vocabOnly: prompts.length === 0 });
  const found = { tokens: texts.map((text) => [...model.tokenize(text, true)]), logits: [], continuations: [] };
  if (prompts.length) {
    const context = await model.createContext({
      contextSize: Math.max(...prompts.map((prompt) => prompt.length)) + numTokens + 1,
      experimentalKvCacheKeyType: "F32",
      experimentalKvCacheValueType: "F32",
      flashAttention: false,
      threads: 1, // more would wait for each other on a busy machine
    });
    const sequence = context.getSequence();
    for (const prompt of prompts) {
      found.logits.push(await logitsOf(sequence, prompt, positions));
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
