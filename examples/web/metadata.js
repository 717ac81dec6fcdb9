/** Name -> value of an ONNX model's metadata, which onnxruntime-web does not give: field 14 of ModelProto. */
export function metadata(bytes) {
  const found = {};
  for (const [field, value] of fields(bytes)) {
    if (field !== 14) continue;
    const entry = Object.fromEntries([...fields(value)].map(([k, v]) => [k, new TextDecoder().decode(v)]));
    found[entry[1]] = entry[2] ?? "";
  }
  return found;
}

/** Pairs of field number and bytes, of the length-delimited fields of a protobuf message. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++];
      if (byte === undefined || shift > 63) throw new Error("the model is no ONNX file");
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const kind = key % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      yield [Math.floor(key / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error("the model is no ONNX file");
  }
}
