/** Completion for shells, made of what there is. */
export interface Verb {
  readonly name: string;
  readonly usage: string;
  readonly help: string;
  /** Whether its first word is a VM. */
  readonly takesVm: boolean;
}

/** @throws RangeError for another shell. */
export function completionScript(shell: string, verbs: readonly Verb[]): string {
  const names = verbs.map(({ name }) => name).join(' ');
  const ofVm = verbs.filter(({ takesVm }) => takesVm).map(({ name }) => name);
  const vms = "acrnvm ls 2>/dev/null | awk 'NR > 1 { print $1 }'";
  switch (shell) {
    case 'bash':
      return `_acrnvm() {
  local word=\${COMP_WORDS[COMP_CWORD]}
  if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "${names}" -- "$word")); return; fi
  case \${COMP_WORDS[1]} in
    ${ofVm.join('|')}) [ "$COMP_CWORD" = 2 ] && COMPREPLY=($(compgen -W "$(${vms})" -- "$word")) ;;
    run) COMPREPLY=($(compgen -f -- "$word")) ;;
    completion) COMPREPLY=($(compgen -W "bash zsh fish" -- "$word")) ;;
  esac
}
complete -F _acrnvm acrnvm
`;
    case 'zsh':
      return `#compdef acrnvm
_acrnvm() {
  if (( CURRENT == 2 )); then
    local -a verbs=(${verbs.map(({ name, help }) => `'${name}:${help.replaceAll("'", '').replaceAll(':', ' ')}'`).join(' ')})
    _describe command verbs
  else
    case $words[2] in
      ${ofVm.join('|')}) compadd -- $(${vms}) ;;
      run) _files ;;
      completion) compadd bash zsh fish ;;
    esac
  fi
}
compdef _acrnvm acrnvm
`;
    case 'fish':
      return `${verbs
        .map(
          ({ name, help }) =>
            `complete -c acrnvm -f -n __fish_use_subcommand -a ${name} -d '${help.replaceAll("'", '')}'`,
        )
        .join('\n')}
complete -c acrnvm -f -n '__fish_seen_subcommand_from ${ofVm.join(' ')}' -a "(${vms.replaceAll('$', '\\$')})"
`;
    default:
      throw new RangeError(`there is completion for bash, zsh and fish, not for "${shell}"`);
  }
}
