/** What a start would find wrong with the scenario file. */
import { DmError } from '../../devicemodel/core/errors.ts';
import { readScenario } from './scenario.ts';

export function scenarioProblems(path: string | undefined): DmError[] {
  try {
    if (path !== undefined) readScenario(path);
    return [];
  } catch (error) {
    if (error instanceof DmError) return [error];
    throw error;
  }
}
