// The same few calls with the official TypeScript client; prints one JSON object.
//
// ts_client.mjs MODULES TARGET    MODULES: where node_modules is, TARGET: JSON with `way` and
// what that way needs (`url` and `headers`, or `command`, `args` and `env`)
import { createRequire } from "node:module";
import { argv, stdout } from "node:process";

const require = createRequire(`${argv[2]}/package.json`);
const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { SSEClientTransport } = require("@modelcontextprotocol/sdk/client/sse.js");
const { StdioClientTransport } = require("@modelcontextprotocol/sdk/client/stdio.js");
const {
  StreamableHTTPClientTransport,
} = require("@modelcontextprotocol/sdk/client/streamableHttp.js");

const target = JSON.parse(argv[3]);
const options = { requestInit: { headers: target.headers ?? {} } };
const transports = {
  stdio: () =>
    new StdioClientTransport({ command: target.command, args: target.args, env: target.env }),
  sse: () => new SSEClientTransport(new URL(target.url), options),
  http: () => new StreamableHTTPClientTransport(new URL(target.url), options),
};

const client = new Client({ name: "typescript", version: "1" });
await client.connect(transports[target.way]());
const { tools } = await client.listTools();
// The client checks each result against the tool's output schema, and throws if it does not fit.
const listed = await client.callTool({ name: "list_agents", arguments: { query: "ada" } });
const chat = await client.callTool({
  name: "chat_with_agent",
  arguments: { agent: "Ada", message: "!say hello", mirror: false },
});
const refused = await client.callTool({ name: "list_agents", arguments: { limit: 0 } });
await client.close();
stdout.write(
  JSON.stringify({
    tools: tools.map((tool) => tool.name),
    agents: listed.structuredContent.agents.map((agent) => agent.name),
    reply: chat.structuredContent.reply,
    refused: refused.isError === true,
  }),
);
