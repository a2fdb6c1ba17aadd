import { log } from './output';

/**
 * A signal that aborts at Ctrl-C or a request to end, so that the job stops between two units and leaves nothing
 * half-written. A second one ends the process at once.
 */
export function abortOnInterrupt(): { signal: AbortSignal; done: () => void } {
  const controller = new AbortController();
  const stop = () => {
    if (controller.signal.aborted) process.exit(1);
    log('interrupted: finishing what is under way (once more to stop at once)');
    controller.abort();
  };
  process.on('SIGINT', stop).on('SIGTERM', stop);
  return {
    signal: controller.signal,
    done: () => process.off('SIGINT', stop).off('SIGTERM', stop),
  };
}
