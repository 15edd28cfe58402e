// Samples from a GGUF model with llama.cpp. Prints {seconds, numTokens, peakBytes} on its last line.
// Usage: node llama_cpp.mjs JOB.json
// The job: model, prompts (token ids), numTokens, threads, flashAttention, temperature (0 is greedy).
import { readFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";

const WARM_UP_TOKENS = 4;
const job = JSON.parse(readFileSync(process.argv[2], "utf8"));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: job.threads });
const model = await llama.loadModel({ modelPath: job.model, gpuLayers: 0 });
const context = await model.createContext({
  contextSize: job.prompts[0].length + job.numTokens + 8, // of each sequence
  sequences: job.prompts.length,
  threads: { ideal: job.threads, min: job.threads },
  flashAttention: job.flashAttention,
});
const sequences = job.prompts.map(() => context.getSequence());

// No truncation: the whole distribution, as on the other sides.
const sampling = { temperature: job.temperature, topK: 0, topP: 1, minP: 0, yieldEogToken: true };

async function complete(sequence, prompt, numTokens) {
  let count = 0;
  for await (const token of sequence.evaluate(prompt, sampling)) if (++count >= numTokens) break;
  return count;
}

async function completeAll(numTokens) {
  const counts = await Promise.all(sequences.map((sequence, i) => complete(sequence, job.prompts[i], numTokens)));
  return counts.reduce((total, count) => total + count, 0);
}

// VmHWM rather than resourceUsage(): the latter also covers the process that started this one.
function peakBytes() {
  try {
    return 1024 * Number(readFileSync("/proc/self/status", "utf8").match(/VmHWM:\s*(\d+)/)[1]);
  } catch {
    return 1024 * process.resourceUsage().maxRSS;
  }
}

await completeAll(WARM_UP_TOKENS);
await Promise.all(sequences.map((sequence) => sequence.clearHistory()));
const started = performance.now();
const numTokens = await completeAll(job.numTokens);
const seconds = (performance.now() - started) / 1000;
console.log(JSON.stringify({ seconds, numTokens, peakBytes: peakBytes() }));
process.exit(0);
