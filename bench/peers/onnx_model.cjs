'use strict';
// Writes the few ONNX messages that a model of products needs (protocol buffers, onnx.proto).

const FLOAT = 1;
const UINT8 = 2;
const INT8 = 3;
const INT32 = 6;

function varint(value) {
  const bytes = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest >= 128n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128);
  bytes.push(Number(rest));
  return Buffer.from(bytes);
}

const number = (field, value) => Buffer.concat([varint(field * 8), varint(value)]);
const bytes = (field, content) => {
  const body = typeof content === 'string' ? Buffer.from(content) : content;
  return Buffer.concat([varint(field * 8 + 2), varint(body.length), body]);
};
const message = (field, ...parts) => bytes(field, Buffer.concat(parts));

/** GraphProto.initializer */
const tensor = (name, type, dims, data) =>
  message(
    5,
    ...dims.map((dim) => number(1, dim)),
    number(2, type),
    bytes(8, name),
    bytes(9, Buffer.from(data.buffer, data.byteOffset, data.byteLength)),
  );

/** GraphProto.input is field 11, .output field 12; a dimension is a number or a name. */
const value = (field, name, type, dims) => {
  const shape = dims.map((dim) => message(1, typeof dim === 'number' ? number(1, dim) : bytes(2, dim)));
  return message(field, bytes(1, name), message(2, message(1, number(1, type), message(2, ...shape))));
};
const input = (...args) => value(11, ...args);
const output = (...args) => value(12, ...args);

/** GraphProto.node, with integer attributes */
const node = (type, inputs, outputs, attributes = {}, domain = '') =>
  message(
    1,
    ...inputs.map((name) => bytes(1, name)),
    ...outputs.map((name) => bytes(2, name)),
    bytes(4, type),
    ...Object.entries(attributes).map(([name, i]) => message(5, bytes(1, name), number(3, i), number(20, 2))),
    bytes(7, domain),
  );

const opset = (domain, version) => message(8, bytes(1, domain), number(2, version));

const model = (...parts) =>
  Buffer.concat([
    number(1, 10),
    opset('', 21),
    opset('com.microsoft', 1),
    message(7, ...parts, bytes(2, 'products')),
  ]);

module.exports = { FLOAT, INT8, INT32, UINT8, input, model, node, output, tensor };
