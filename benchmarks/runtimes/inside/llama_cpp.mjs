// A session of llama.cpp through node-llama-cpp's prebuilt library; nothing is downloaded or built.
//
//     node llama_cpp.mjs REQUEST.json ANSWER.json
//
// Request and answer are those of session.py.
import fs from "node:fs";
import path from "node:path";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const GREEDY = {temperature: 0};
const CONTEXT_TOKENS = 1024;

// Once the runtime has said why it refuses a file; its exception does not.
const complaints = [];

class Model {
    constructor(model, context) {
        this.model = model;
        this.sequence = context.getSequence();
    }

    // The likeliest next token after `tokens`, which are added to the sequence, or all its logits.
    async step(tokens, wanted = {token: true, options: GREEDY}) {
        const last = [tokens.at(-1), {generateNext: wanted}];
        const results = await this.sequence.controlledEvaluate([...tokens.slice(0, -1), last]);
        return results.at(-1).next;
    }

    async nextLogits(prompt) {
        await this.sequence.clearHistory();
        const {logits} = await this.step(prompt, {logits: true});
        const values = new Float32Array(logits.size);
        for (const [token, logit] of logits) values[token] = logit;
        return values;
    }

    async greedy(prompt, count) {
        await this.sequence.clearHistory();
        const found = [(await this.step(prompt)).token];
        while (found.length < count) found.push((await this.step([found.at(-1)])).token);
        return found;
    }

    async timed(prompt, count) {
        await this.sequence.clearHistory();
        const start = performance.now();
        let {token} = await this.step(prompt);
        const first = performance.now();
        for (let made = 0; made < count; made++) ({token} = await this.step([token]));
        const end = performance.now();
        return {prefill_seconds: (first - start) / 1e3, decode_seconds: (end - first) / 1e3};
    }
}

async function load(llama, file, threads) {
    const model = await llama.loadModel({modelPath: file});
    const context = await model.createContext({
        contextSize: CONTEXT_TOKENS, batchSize: CONTEXT_TOKENS, threads, flashAttention: false,
    });
    return new Model(model, context);
}

async function answer(model, request, logitsPath) {
    const tokens = [], logits = [];
    for (const prompt of request.prompts) {
        logits.push(Buffer.from((await model.nextLogits(prompt)).buffer));
        tokens.push(await model.greedy(prompt, request.new_tokens));
    }
    fs.writeFileSync(logitsPath, Buffer.concat(logits));
    return {tokens, logits: logitsPath, text_tokens: model.model.tokenize(request.text)};
}

async function times(models, timing) {
    const found = Object.fromEntries(Object.keys(models).map((name) => [name, []]));
    for (let number = 0; number <= timing.rounds; number++) {
        const names = Object.keys(models);
        for (const name of number % 2 ? names.reverse() : names) {
            const measured = await models[name].timed(timing.prompt, timing.new_tokens);
            if (number > 0) found[name].push(measured); // the first round only warms up
        }
    }
    return found;
}

const [requestPath, answerPath] = process.argv.slice(2);
const request = JSON.parse(fs.readFileSync(requestPath, "utf8"));
const stem = path.join(path.dirname(answerPath), path.basename(answerPath, ".json"));
const llama = await getLlama({
    build: "never",
    skipDownload: true,
    gpu: false,
    progressLogs: false,
    maxThreads: request.threads,
    logLevel: LlamaLogLevel.error,
    logger: (level, message) => complaints.push(message.trim()),
});
const {version} = JSON.parse(
    fs.readFileSync(new URL("node_modules/node-llama-cpp/package.json", import.meta.url), "utf8"));
const versions = {"llama.cpp": llama.llamaCppRelease.release, "node-llama-cpp": version};
const write = (answers, times) => {
    fs.writeFileSync(`${answerPath}.unfinished`, JSON.stringify({versions, models: answers, times}));
    fs.renameSync(`${answerPath}.unfinished`, answerPath);
};
const models = {}, answers = {};
for (const {name, path: file} of request.models) {
    complaints.length = 0;
    try {
        models[name] = await load(llama, file, request.threads);
        answers[name] = await answer(models[name], request, `${stem}-${name}.f32`);
    } catch (error) {
        answers[name] = {error: [error.message, ...complaints].join("; ")};
    }
    write(answers, {}); // after every model: a crash loses the later ones only
}
const complete = Object.values(answers).every((each) => !("error" in each));
if (complete && request.timing) write(answers, await times(models, request.timing));
process.exit(0); // without waiting for the runtime to free its memory
