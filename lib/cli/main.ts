#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { version } from '../version';
import { convert } from './convert';
import { evaluate } from './evaluate';
import { generate } from './generate';
import { info } from './info';
import { inspect } from './inspect';
import { plan } from './plan';
import { quantize } from './quantize';
import { usage } from './usage';
import { verify } from './verify';

/** Wrong words on the command line; a run that fails exits with 1. */
const EXIT_USAGE = 2;

function program(): Command {
  const quantaria = new Command('quantaria')
    .description('Quantizes mixture-of-experts checkpoints as they are, on the CPU or on CUDA.')
    .version(version)
    .showSuggestionAfterError(false)
    .exitOverride();
  for (const add of [info, inspect, convert, plan, usage, quantize, evaluate, generate, verify])
    add(quantaria);
  for (const command of quantaria.commands) {
    command.showSuggestionAfterError(false).exitOverride();
    command
      .option('--json', 'print one JSON object on stdout')
      .option('--debug', 'show stack traces of errors');
  }
  return quantaria;
}

/** The last line on stderr says what went wrong. */
function report(error: unknown): void {
  if (process.argv.includes('--debug') && error instanceof Error) console.error(error.stack);
  const message = error instanceof Error ? error.message : String(error);
  console.error(`error: ${message}`);
}

async function main(): Promise<void> {
  try {
    await program().parseAsync(process.argv);
  } catch (error) {
    if (error instanceof CommanderError) {
      // Commander has said it already; help and version end this way too. Without any command it shows the help alone.
      if (error.code === 'commander.help' && error.exitCode !== 0) report(new Error('a command expected'));
      process.exitCode = error.exitCode === 0 ? 0 : EXIT_USAGE;
      return;
    }
    report(error);
    process.exitCode = 1;
  }
}

void main();
