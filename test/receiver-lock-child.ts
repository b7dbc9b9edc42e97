/** Takes the lock named on its command line, says so, and keeps it until it is killed. */
import { errorText, HoldfastError } from '../src/errors.ts';
import { takeReceiverLock } from '../src/wal/receive/receiver-lock.ts';

try {
  await takeReceiverLock(process.argv[2] ?? '', 'app');
  console.log('held');
  setInterval(() => undefined, 1000);
} catch (error) {
  console.log(error instanceof HoldfastError ? error.code : errorText(error));
}
