_acrnvm() {
  local word=${COMP_WORDS[COMP_CWORD]}
  if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "run ls info stop reset pause resume wake button disk eject resize link console events top log metrics crash doctor prune config completion" -- "$word")); return; fi
  case ${COMP_WORDS[1]} in
    info|stop|reset|pause|resume|wake|button|disk|eject|resize|link|console|events|top|log|metrics|crash) [ "$COMP_CWORD" = 2 ] && COMPREPLY=($(compgen -W "$(acrnvm ls 2>/dev/null | awk 'NR > 1 { print $1 }')" -- "$word")) ;;
    run) COMPREPLY=($(compgen -f -- "$word")) ;;
    completion) COMPREPLY=($(compgen -W "bash zsh fish" -- "$word")) ;;
  esac
}
complete -F _acrnvm acrnvm
