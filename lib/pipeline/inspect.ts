import type { Role } from '../models';
import { openModel, type StoredModel } from './stored_model';

export interface PartSummary {
  tensors: number;
  parameters: number;
  bytes: number;
}

export interface Inspection {
  architecture: string;
  /** False if the names were read by general rules only. */
  known: boolean;
  layers: number;
  experts: number;
  topK: number | null;
  expertLayout: string | null;
  /** The quantized format, or null. */
  format: string | null;
  parameters: number;
  bytes: number;
  dtypes: Record<string, { tensors: number; bytes: number }>;
  parts: Record<string, PartSummary>;
  notes: string[];
}

/** What a checkpoint is: architecture, layers, and how many parameters and bytes each role has. */
export async function inspectModel(directory: string): Promise<Inspection> {
  const opened = await openModel(directory);
  const { checkpoint, model, format } = opened;
  try {
    const roles = rolesOf(opened);
    const parameters = parametersOf(opened);
    const parts: Record<string, PartSummary> = {};
    const dtypes: Inspection['dtypes'] = {};
    let bytes = 0;
    for (const entry of checkpoint.entries()) {
      bytes += entry.bytes;
      const role = roles.get(entry.name) ?? 'other';
      parts[role] ??= { tensors: 0, parameters: 0, bytes: 0 };
      const part = parts[role];
      part.tensors++;
      part.parameters += parameters.get(entry.name) ?? entry.shape.reduce((a, b) => a * b, 1);
      part.bytes += entry.bytes;
      dtypes[entry.dtype] ??= { tensors: 0, bytes: 0 };
      const dtype = dtypes[entry.dtype] as { tensors: number; bytes: number };
      dtype.tensors++;
      dtype.bytes += entry.bytes;
    }
    return {
      architecture: model.architecture,
      known: model.known,
      layers: model.layers,
      experts: model.experts,
      topK: model.topK,
      expertLayout: model.expertLayout,
      format: format?.name ?? null,
      parameters: Object.values(parts).reduce((sum, part) => sum + part.parameters, 0),
      bytes,
      dtypes,
      parts,
      notes: model.notes,
    };
  } finally {
    checkpoint.close();
  }
}

/** The role of each stored tensor. */
export function rolesOf({ model }: Pick<StoredModel, 'model'>): Map<string, Role> {
  const roles = new Map<string, Role>();
  for (const { source, role } of model.linears) roles.set(source.tensor, role);
  for (const { name, role } of model.others) roles.set(name, role);
  return roles;
}

/** A quantized module's parameters count once, at the first of its tensors; the others are constants. */
function parametersOf({ modules }: StoredModel): Map<string, number> {
  const parameters = new Map<string, number>();
  for (const { tensors, shape } of modules) {
    tensors.forEach((name, i) => {
      parameters.set(name, (parameters.get(name) ?? 0) + (i === 0 ? shape[0] * shape[1] : 0));
    });
  }
  return parameters;
}
