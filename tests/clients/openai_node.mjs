// Calls a server with OpenAI's client for Node, unmodified, and prints what it answers as one JSON object.
import {createRequire} from "node:module";

const [, , folder, baseURL, prompt] = process.argv;  // folder: where node_modules is
const {OpenAI} = createRequire(folder + "/")("openai");
const client = new OpenAI({baseURL, apiKey: "none", maxRetries: 0});
const model = (await client.models.list()).data[0].id;
const messages = [{role: "user", content: prompt}];

async function joined(stream, pieceOf) {
  let text = "";
  for await (const part of stream) text += pieceOf(part) ?? "";
  return text;
}

const found = {
  retrieved: (await client.models.retrieve(model)).id,
  completion: (await client.completions.create({model, prompt})).choices[0].text,
  chat: (await client.chat.completions.create({model, messages})).choices[0].message.content,
  chat_streamed: await joined(
    await client.chat.completions.create({model, messages, stream: true}), (part) => part.choices[0]?.delta?.content),
  chat_helper: await client.chat.completions.stream({model, messages}).finalContent(),
  response: (await client.responses.create({model, input: prompt})).output_text,
  response_streamed: await joined(
    await client.responses.create({model, input: prompt, stream: true}),
    (event) => event.type === "response.output_text.delta" ? event.delta : ""),
  response_helper: (await client.responses.stream({model, input: prompt}).finalResponse()).output_text,
};
console.log(JSON.stringify({model, ...found}));
