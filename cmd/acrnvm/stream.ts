/** Server-sent events of a VM, one after the other. */
import { open, refusalOf } from './client.ts';

/** Until the VM, and its stream with it, is gone. @throws ClientError when there is none. */
export async function follow(socketPath: string, path: string, show: (event: unknown) => void): Promise<void> {
  const response = await open(socketPath, 'GET', path);
  if (response.statusCode !== 200) throw await refusalOf(response);
  let rest = '';
  try {
    for await (const part of response.setEncoding('utf8') as AsyncIterable<string>) {
      const lines = (rest + part).split('\n');
      rest = lines.pop() as string;
      for (const line of lines) if (line.startsWith('data: ')) show(JSON.parse(line.slice('data: '.length)));
    }
  } catch {
    // The VM is gone: so are its events.
  }
}
